//! Finds the images that the arguments of a verb name: files, folders and glob patterns.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use datasets::{DataSource, ImageError, Source, SourceImage, SourceSettings, is_image, read_image};
use glob::{MatchOptions, glob_with};

use super::CommandError;

/// An image of the arguments.
pub(super) struct ImageArgument {
    /// Its path.
    pub(super) path: PathBuf,
    /// The path below the folder that was searched for it; the file's name if it was not found in a folder.
    pub(super) name: PathBuf,
    /// The folder that it was found in, and its index there.
    found_in: Option<(Arc<dyn Source>, usize)>,
    /// Whether an argument is its path, so that it has to be read.
    pub(super) is_named: bool,
}

impl ImageArgument {
    fn file(path: PathBuf, is_named: bool) -> Self {
        let name = path.file_name().map(PathBuf::from).unwrap_or_default();
        Self { path, name, found_in: None, is_named }
    }

    /// Reads the image.
    ///
    /// # Errors
    /// If it cannot be read or decoded.
    pub(super) fn read(&self) -> Result<SourceImage, ImageError> {
        match &self.found_in {
            Some((source, index)) => source.load(*index),
            None => read_image(&self.path).map(SourceImage::from),
        }
    }
}

/// Returns the images of `arguments`, each once. A folder is searched like `data.path`, and a pattern such as
/// `photos/*.jpg` for what it matches. The search passes over the folder `output` in what is searched: images that an
/// earlier call wrote.
///
/// # Errors
/// If a folder or a pattern has no images, or a folder cannot be listed.
pub(super) fn find_images(arguments: &[PathBuf], output: &Path) -> Result<Vec<ImageArgument>, CommandError> {
    let output = output.canonicalize().ok();
    let (mut images, mut known) = (Vec::new(), BTreeSet::new());
    for argument in arguments {
        let (found, searched) = match argument.to_str().filter(|text| is_pattern(text) && !argument.exists()) {
            Some(pattern) => (matches(pattern)?, folder_of(pattern)),
            None if argument.is_dir() => (in_folder(argument)?, argument.clone()),
            None => (vec![ImageArgument::file(argument.clone(), true)], argument.clone()),
        };
        let searched = searched.canonicalize().unwrap_or(searched);
        let passed_over = output.as_ref().filter(|output| output.starts_with(&searched) && **output != searched);
        let mut is_empty = true;
        for image in found {
            let place = image.path.canonicalize().unwrap_or_else(|_| image.path.clone());
            if passed_over.is_some_and(|output| place.starts_with(output)) {
                continue;
            }
            is_empty = false;
            if known.insert(place) {
                images.push(image);
            }
        }
        if is_empty {
            return Err(CommandError::Usage(format!("no images in {}", argument.display())));
        }
    }
    Ok(images)
}

/// The folder that a pattern is searched in.
fn folder_of(pattern: &str) -> PathBuf {
    let fixed = pattern.split(['*', '?', '[']).next().unwrap_or_default();
    match fixed.rsplit_once(std::path::is_separator) {
        Some(("", _)) => PathBuf::from("/"),
        Some((folder, _)) => PathBuf::from(folder),
        None => PathBuf::from("."),
    }
}

fn is_pattern(text: &str) -> bool {
    text.contains(['*', '?', '['])
}

fn matches(pattern: &str) -> Result<Vec<ImageArgument>, CommandError> {
    let options = MatchOptions { require_literal_leading_dot: true, ..MatchOptions::new() };
    let paths = glob_with(pattern, options).map_err(|error| CommandError::Usage(format!("{pattern}: {error}")))?;
    let mut images = Vec::new();
    for path in paths {
        let path = path.map_err(|error| {
            let path = error.path().display().to_string();
            CommandError::Io { path, source: error.into() }
        })?;
        match path.is_dir() {
            true => images.extend(in_folder(&path).or_else(|error| match error {
                CommandError::Data(datasets::DataError::NoImages { .. }) => Ok(Vec::new()),
                error => Err(error),
            })?),
            false if is_image(&path) => images.push(ImageArgument::file(path, false)),
            false => {}
        }
    }
    Ok(images)
}

fn in_folder(folder: &Path) -> Result<Vec<ImageArgument>, CommandError> {
    let settings = SourceSettings { path: Some(folder), images: 0, resolution: 1, seed: 0, needs_captions: false };
    let source = DataSource::Folder.open(&settings)?;
    source.notes().iter().for_each(|line| note!("{line}"));
    let image = |index: usize| {
        let path = PathBuf::from(source.name(index));
        let name = path.strip_prefix(folder).unwrap_or(&path).to_owned();
        ImageArgument { path, name, found_in: Some((source.clone(), index)), is_named: false }
    };
    Ok((0..source.len()).map(image).collect())
}

/// Returns a path in `folder` for a PNG of each image: its [name](ImageArgument::name), with a number if that is taken. If
/// `with_comparison`, the second path is for its comparison: `cat.png` and `cat-compare.png`.
///
/// # Errors
/// If one of the PNGs would replace one of the images.
pub(super) fn output_paths(
    images: &[ImageArgument],
    folder: &Path,
    with_comparison: bool,
) -> Result<Vec<(PathBuf, Option<PathBuf>)>, CommandError> {
    let inputs: BTreeSet<PathBuf> = images.iter().filter_map(|image| image.path.canonicalize().ok()).collect();
    let mut taken = BTreeSet::new();
    let mut paths_of = |image: &ImageArgument| {
        let stem = image.name.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
        let numbered = (2..).map(|number| format!("{stem}-{number}"));
        let mut stems = std::iter::once(stem.clone()).chain(numbered);
        let names = |stem: &str| {
            let name = |end: &str| image.name.with_file_name(format!("{stem}{end}.png"));
            [Some(name("")), with_comparison.then(|| name("-compare"))]
        };
        // Some file systems ignore case.
        let key = |name: &PathBuf| name.to_string_lossy().to_lowercase();
        let is_free = |stem: &String| names(stem).iter().flatten().all(|name| !taken.contains(&key(name)));
        let [name, comparison] = names(&stems.find(is_free).unwrap_or(stem));
        taken.extend(name.iter().chain(&comparison).map(key));
        let paths = (folder.join(name.unwrap_or_default()), comparison.map(|name| folder.join(name)));
        let replaces = |path: &&PathBuf| path.canonicalize().is_ok_and(|path| inputs.contains(&path));
        match std::iter::once(&paths.0).chain(&paths.1).find(replaces) {
            Some(path) => {
                let message = format!("--output {} would replace the image {}", folder.display(), path.display());
                Err(CommandError::Usage(message))
            }
            None => Ok(paths),
        }
    };
    images.iter().map(&mut paths_of).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(root: &Path, names: &[&str]) {
        for name in names {
            let path = root.join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            image::RgbImage::new(8, 8).save(path).unwrap();
        }
    }

    /// The images below `root` that `arguments` name.
    fn found(root: &Path, arguments: &[&str]) -> Result<Vec<String>, String> {
        let arguments: Vec<PathBuf> = arguments.iter().map(|argument| root.join(argument)).collect();
        let images = find_images(&arguments, &root.join("out")).map_err(|error| error.to_string())?;
        let below = |image: ImageArgument| image.path.strip_prefix(root).unwrap().display().to_string();
        Ok(images.into_iter().map(below).collect())
    }

    #[test]
    fn files_folders_and_patterns_name_each_image_once() {
        let root = tempfile::tempdir().unwrap();
        let root = root.path();
        write(root, &["a.png", "b.png", "cats/1.png", "cats/old/1.png", "cats/.hidden/2.png", "out/a.png", "[x].png"]);
        std::fs::write(root.join("notes.txt"), "no image").unwrap();
        assert_eq!(found(root, &["b.png", "a.png", "b.png"]).unwrap(), ["b.png", "a.png"]);
        assert_eq!(found(root, &["cats"]).unwrap(), ["cats/1.png", "cats/old/1.png"]);
        assert_eq!(found(root, &["?.png"]).unwrap(), ["a.png", "b.png"]);
        assert_eq!(found(root, &["[x].png"]).unwrap(), ["[x].png"], "a file of that name is no pattern");
        // Earlier reconstructions are not reconstructed again, unless that is asked for.
        let all = ["[x].png", "a.png", "b.png", "cats/1.png", "cats/old/1.png"];
        for argument in [".", "*", "**/*"] {
            let mut images = found(root, &[argument]).unwrap();
            images.sort();
            assert_eq!(images, all, "{argument}");
        }
        for argument in ["out", "out/a.png", "out/*.png", "o*/a.png"] {
            let expected = if argument.starts_with("out") { Ok(vec!["out/a.png".to_owned()]) } else { Err(()) };
            assert_eq!(found(root, &[argument]).map_err(drop), expected, "{argument}");
        }
        std::fs::remove_file(root.join("cats/1.png")).unwrap();
        std::fs::remove_file(root.join("cats/old/1.png")).unwrap();
        for argument in ["cats", "*.jpg", "n*"] {
            assert!(found(root, &["a.png", argument]).unwrap_err().contains(argument), "{argument}");
        }
    }

    fn output(names: &[&str], folder: &Path, with_comparison: bool) -> Vec<[String; 2]> {
        let image = |name: &&str| ImageArgument { name: name.into(), ..ImageArgument::file(name.into(), true) };
        let images: Vec<ImageArgument> = names.iter().map(image).collect();
        let below = |path: PathBuf| path.strip_prefix(folder).unwrap().display().to_string();
        let paths = output_paths(&images, folder, with_comparison).unwrap();
        paths.into_iter().map(|(path, comparison)| [below(path), comparison.map(below).unwrap_or_default()]).collect()
    }

    #[test]
    fn images_of_the_same_name_do_not_overwrite_each_other() {
        let images = ["x.jpg", "x-2.png", "X.bmp", "x.webp", "y.bmp", "a/y.bmp"];
        let names: Vec<String> = output(&images, Path::new("out"), false).into_iter().map(|[name, _]| name).collect();
        assert_eq!(names, ["x.png", "x-2.png", "X-3.png", "x-4.png", "y.png", "a/y.png"]);
        let names = output(&["x.jpg", "x-compare.jpg", "y-compare.jpg", "y.jpg"], Path::new("out"), true);
        let expected = [
            ["x.png", "x-compare.png"],
            ["x-compare-2.png", "x-compare-2-compare.png"],
            ["y-compare.png", "y-compare-compare.png"],
            ["y-2.png", "y-2-compare.png"],
        ];
        assert_eq!(names, expected);
    }

    #[test]
    fn an_image_is_never_replaced_by_its_reconstruction() {
        let folder = tempfile::tempdir().unwrap();
        write(folder.path(), &["mine.png", "yours-compare.png"]);
        for (names, with_comparison) in [(&["mine.png"][..], false), (&["yours.jpg", "yours-compare.png"], true)] {
            let image = |name: &&str| ImageArgument::file(folder.path().join(name), true);
            let images: Vec<ImageArgument> = names.iter().map(image).collect();
            let paths = output_paths(&images, folder.path(), with_comparison);
            assert!(matches!(paths, Err(CommandError::Usage(_))), "{names:?}");
            assert!(output_paths(&images, &folder.path().join("out"), with_comparison).is_ok());
        }
    }
}
