//! Where images come from. To add a source, write its file here and add it to the list below.

mod folder;
mod interface;
mod shapes;

use std::sync::Arc;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use self::folder::FolderSource;
pub use self::folder::is_image;
use self::interface::FromSettings;
pub use self::interface::{Source, SourceImage, SourceSettings};
use self::shapes::PlainShapesSource;
pub use self::shapes::{Attribute, ShapesSource};
use crate::error::{DataError, SettingError};

macro_rules! sources {
    ($($(#[$about:meta])* $name:ident($source:ty),)*) => {
        /// A source as the configuration names it: `data.source`.
        #[derive(Clone, Copy, Debug, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
        #[serde(rename_all = "lowercase")]
        pub enum DataSource {
            $($(#[$about])* $name,)*
        }

        impl DataSource {
            /// Every source.
            pub const ALL: &[Self] = &[$(Self::$name),*];

            /// Checks the settings that matter to this source alone.
            ///
            /// # Errors
            /// A setting is missing, or has no effect on this source.
            pub fn check(self, settings: &SourceSettings) -> Result<(), SettingError> {
                match self {
                    $(Self::$name => <$source>::check(settings),)*
                }
            }

            /// Opens the source.
            ///
            /// # Errors
            /// As for [`check`](Self::check), and if there are no images.
            pub fn open(self, settings: &SourceSettings) -> Result<Arc<dyn Source>, DataError> {
                self.check(settings)?;
                Ok(match self {
                    $(Self::$name => Arc::new(<$source>::from_settings(settings)?),)*
                })
            }
        }
    };
}

sources! {
    /// A folder of images.
    Folder(FolderSource),
    /// Images that the program draws.
    Shapes(ShapesSource),
    /// Images that the program draws, of fewer forms and colours.
    #[serde(rename = "plain-shapes")]
    PlainShapes(PlainShapesSource),
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn every_source_opens_with_the_settings_that_it_accepts_and_with_no_others() {
        let root = tempfile::tempdir().unwrap();
        image::RgbImage::new(16, 16).save(root.path().join("a.png")).unwrap();
        let mut names = HashSet::new();
        for source in DataSource::ALL {
            let mut accepted = 0;
            for path in [Some(root.path()), None] {
                let settings = SourceSettings { path, images: 9, resolution: 16, seed: 0, needs_captions: false };
                let opened = source.open(&settings);
                match source.check(&settings) {
                    Ok(()) => {
                        let opened = opened.unwrap();
                        opened.load(0).unwrap();
                        names.insert(opened.name(0));
                        accepted += 1;
                    }
                    Err(refused) => assert_eq!(opened.err(), Some(DataError::Setting(refused))),
                }
            }
            assert!(accepted > 0, "{source:?}");
        }
        // No source is opened in place of another one.
        assert_eq!(names.len(), DataSource::ALL.len());
    }

    #[test]
    fn names_of_sources_in_configurations_never_change() {
        for (name, source) in
            [("folder", DataSource::Folder), ("shapes", DataSource::Shapes), ("plain-shapes", DataSource::PlainShapes)]
        {
            assert_eq!(serde_json::from_value::<DataSource>(name.into()).unwrap(), source);
            assert_eq!(serde_json::to_value(source).unwrap(), name);
        }
    }
}
