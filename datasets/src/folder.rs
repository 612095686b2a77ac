//! A folder of images and all its subfolders, with captions if it has any.

use std::fs;
use std::path::{Path, PathBuf};

use walkdir::WalkDir;

use crate::captions::Captions;
use crate::decode::MAX_BYTES;
use crate::{DataError, ImageError, ImageProblem, Picture, Source, decode};

/// The file name extensions that count as a picture, in any case.
pub const EXTENSIONS: [&str; 5] = ["jpg", "jpeg", "png", "webp", "bmp"];

/// The images of a folder, sorted by path, so that an index means the same file on every machine.
///
/// Hidden files and folders are passed over. Links are followed, but not round in circles.
///
/// A picture's captions are the lines of the text file beside it (`cat.txt` for `cat.jpg`), empty ones left out. Where
/// there is none, or nothing in it, they are what `metadata.jsonl` or `captions.json` at the folder's root says:
///
/// ```text
/// metadata.jsonl   {"file_name": "cats/1.jpg", "text": "a cat"}        a line each, several for several captions
/// captions.json    [{"file_name": "cats/1.jpg", "text": "a cat"}]      or {"cats/1.jpg": ["a cat", "a tired cat"]}
/// ```
#[derive(Debug)]
pub struct FolderSource {
    files: Vec<PathBuf>,
    captions: Captions,
}

impl FolderSource {
    /// Lists the images of a folder; reads none of them.
    ///
    /// # Errors
    /// The path does not exist, is a file, cannot be listed, or holds no images; a file of captions at its root is broken.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, DataError> {
        let path = path.as_ref();
        match fs::metadata(path) {
            Ok(metadata) if metadata.is_dir() => {}
            Ok(_) => return Err(DataError::NotAFolder { path: path.into() }),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Err(DataError::Missing { path: path.into() });
            }
            Err(error) => {
                return Err(DataError::Unlistable { path: path.into(), reason: error.to_string() });
            }
        }
        let mut files = Vec::new();
        let mut captions = Captions::at(path)?;
        let mut other_files = 0;
        let shown = WalkDir::new(path)
            .follow_links(true)
            .into_iter()
            .filter_entry(|entry| entry.depth() == 0 || !is_hidden(entry.path()));
        for entry in shown {
            let file = match entry {
                Ok(entry) if entry.file_type().is_dir() => continue,
                Ok(entry) => entry.into_path(),
                Err(error) if error.loop_ancestor().is_some() => continue,
                Err(error) => lost_link(error, path)?,
            };
            if is_image(&file) {
                files.push(file);
            } else {
                captions.see(&file);
                other_files += 1;
            }
        }
        if files.is_empty() {
            return Err(DataError::NoImages { path: path.into(), extensions: EXTENSIONS.join(", "), other_files });
        }
        files.sort();
        Ok(Self { files, captions })
    }

    /// The file at `index`, or `None` past the end.
    pub fn path(&self, index: usize) -> Option<&Path> {
        self.files.get(index).map(PathBuf::as_path)
    }
}

impl Source for FolderSource {
    fn len(&self) -> usize {
        self.files.len()
    }

    fn name(&self, index: usize) -> String {
        self.files[index].display().to_string()
    }

    fn load(&self, index: usize) -> Result<Picture, ImageError> {
        match read(&self.files[index]).and_then(|bytes| decode(&bytes)) {
            Ok(image) => Ok(Picture { image }),
            Err(problem) => Err(problem.named(self.name(index))),
        }
    }

    fn captions(&self, index: usize) -> Vec<String> {
        self.captions.of(&self.files[index])
    }
}

fn read(path: &Path) -> Result<Vec<u8>, ImageProblem> {
    let unreadable = |error: std::io::Error| ImageProblem::Unreadable(error.to_string());
    let size = fs::metadata(path).map_err(unreadable)?.len();
    if size > MAX_BYTES {
        return Err(ImageProblem::TooLarge { size, limit: MAX_BYTES });
    }
    fs::read(path).map_err(unreadable)
}

fn is_image(path: &Path) -> bool {
    let extension = path.extension().unwrap_or_default().to_string_lossy();
    EXTENSIONS.iter().any(|known| extension.eq_ignore_ascii_case(known))
}

fn is_hidden(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default();
    name.as_encoded_bytes().starts_with(b".")
}

/// A link that leads nowhere stays in the list, to be named as a bad image when it is drawn; anything else that cannot be
/// listed may hide half of the data, so it ends the listing.
fn lost_link(error: walkdir::Error, root: &Path) -> Result<PathBuf, DataError> {
    let path = error.path().unwrap_or(root).to_path_buf();
    if path.is_symlink() {
        return Ok(path);
    }
    let reason = match error.into_io_error() {
        Some(error) => error.to_string(),
        None => "the listing failed".into(),
    };
    Err(DataError::Unlistable { path, reason })
}

#[cfg(test)]
mod tests {
    use image::ImageFormat;

    use super::*;
    use crate::decode::tests::{encode, quadrants};

    fn png() -> Vec<u8> {
        encode(quadrants(16, 16), ImageFormat::Png)
    }

    fn names(source: &FolderSource, root: &Path) -> Vec<String> {
        let inside = |index| source.path(index).unwrap().strip_prefix(root).unwrap();
        (0..source.len()).map(|index| inside(index).to_string_lossy().replace('\\', "/")).collect()
    }

    #[test]
    fn lists_images_of_all_subfolders_in_order() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir_all(root.path().join("b/c")).unwrap();
        fs::create_dir_all(root.path().join(".cache")).unwrap();
        for name in
            ["z.PNG", "b/c/1.jpeg", "b/2.WebP", "a.JPG", "b/10.bmp", "notes.txt", "b/._2.jpg", ".cache/x.png", "jpg"]
        {
            fs::write(root.path().join(name), png()).unwrap();
        }
        let source = FolderSource::open(root.path()).unwrap();
        assert_eq!(names(&source, root.path()), ["a.JPG", "b/10.bmp", "b/2.WebP", "b/c/1.jpeg", "z.PNG"]);
        // The names lie about the format; the bytes do not.
        for index in 0..source.len() {
            assert_eq!(source.load(index).unwrap().image, quadrants(16, 16));
        }
    }

    #[test]
    fn a_wrong_place_is_named() {
        let root = tempfile::tempdir().unwrap();
        let missing = root.path().join("missing");
        let error = FolderSource::open(&missing).unwrap_err();
        assert!(matches!(error, DataError::Missing { .. }));
        assert!(error.to_string().contains(&*missing.to_string_lossy()));

        let file = root.path().join("notes.txt");
        fs::write(&file, "x").unwrap();
        assert!(matches!(FolderSource::open(&file).unwrap_err(), DataError::NotAFolder { .. }));

        fs::create_dir(root.path().join("empty")).unwrap();
        fs::write(root.path().join("empty/data.csv"), "x").unwrap();
        let error = FolderSource::open(root.path()).unwrap_err();
        assert!(matches!(error, DataError::NoImages { other_files: 2, .. }), "{error}");
        assert!(error.to_string().contains("jpg, jpeg, png, webp, bmp"));
    }

    #[test]
    fn bad_files_are_named_with_the_reason() {
        let root = tempfile::tempdir().unwrap();
        fs::write(root.path().join("0-cut.png"), &png()[..60]).unwrap();
        fs::write(root.path().join("1-empty.jpg"), "").unwrap();
        fs::write(root.path().join("2-text.jpg"), "not found").unwrap();
        let source = FolderSource::open(root.path()).unwrap();
        for index in 0..3 {
            let error = source.load(index).unwrap_err();
            let line = error.to_string();
            assert!(line.starts_with(&source.name(index)), "{line}");
            assert!(!line.contains('\n'), "{line}");
        }
        assert_eq!(source.load(1).unwrap_err().problem, ImageProblem::Empty);
        assert_eq!(source.load(2).unwrap_err().problem, ImageProblem::UnknownFormat);
    }

    fn with_captions(files: &[(&str, &[u8])]) -> (tempfile::TempDir, Result<FolderSource, DataError>) {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir(root.path().join("cats")).unwrap();
        for name in ["cats/1.jpg", "cats/2.png", "dog.jpg"] {
            fs::write(root.path().join(name), png()).unwrap();
        }
        for (name, content) in files {
            fs::write(root.path().join(name), content).unwrap();
        }
        let source = FolderSource::open(root.path());
        (root, source)
    }

    fn captions(files: &[(&str, &[u8])]) -> [Vec<String>; 3] {
        let (_root, source) = with_captions(files);
        let source = source.unwrap();
        [0, 1, 2].map(|index| source.captions(index))
    }

    #[test]
    fn lines_of_the_text_beside_an_image_are_its_captions() {
        let found = captions(&[
            ("cats/1.txt", "\u{feff}a cat\r\n\n  a tired cat, \u{e9}tendu \n".as_bytes()),
            ("cats/2.TXT", b"two cats"),
            ("notes.txt", b"about nothing"),
            ("dog.txt.bak", b"a wolf"),
        ]);
        assert_eq!(found[0], ["a cat", "a tired cat, \u{e9}tendu"]);
        assert_eq!(found[1], ["two cats"]);
        assert!(found[2].is_empty());
    }

    #[test]
    fn what_holds_no_text_is_no_caption() {
        let (root, source) = with_captions(&[
            ("cats/1.txt", b"a cat"),
            ("cats/2.txt", b" \n\n"),
            ("dog.txt", b"un chien tr\xe8s grand"),
        ]);
        let source = std::sync::Arc::new(source.unwrap());
        assert_eq!([0, 1, 2].map(|index| source.captions(index).len()), [1, 0, 0]);
        let transform = crate::Transform::training(8, true);
        let set = |indices| crate::TrainingSet::new(source.clone(), indices, transform, 0, 0).unwrap();
        let missing = |name: &str| Some(root.path().join(name).display().to_string());
        assert_eq!(set(vec![0, 1, 2]).first_without_caption(), missing("cats/2.png"));
        assert_eq!(set(vec![0, 2]).first_without_caption(), missing("dog.jpg"));
        assert_eq!(set(vec![0]).first_without_caption(), None);
        assert_eq!(set(vec![0]).sample(0).unwrap().caption.as_deref(), Some("a cat"));

        let long = "a very long cat ".repeat(5000);
        assert!(captions(&[("dog.txt", long.as_bytes())])[2].is_empty());
        // A file that has gone since it was listed.
        fs::remove_file(root.path().join("cats/1.txt")).unwrap();
        assert!(source.captions(0).is_empty());
    }

    #[test]
    fn a_file_at_the_root_has_captions_for_all() {
        let metadata = br#"{"file_name": "cats/1.jpg", "text": "a cat"}
            {"file_name": "./cats/1.jpg", "text": " a tired cat ", "likes": 7}

            {"file_name": "gone.jpg", "text": "nothing"}
            {"file_name": "dog.jpg", "text": ""}"#;
        let [first, second, dog] = captions(&[("metadata.jsonl", metadata)]);
        assert_eq!(first, ["a cat", "a tired cat"]);
        assert!(second.is_empty() && dog.is_empty());

        let list = br#"[{"file_name": "dog.jpg", "text": ["a dog", "a good dog"]}, {"file_name": "cats/2.png"}]"#;
        let [_, second, dog] = captions(&[("captions.json", list)]);
        assert_eq!(dog, ["a dog", "a good dog"]);
        assert!(second.is_empty());

        // The text beside the image comes first, if there is any.
        let map = br#"{"dog.jpg": "a dog", "cats/1.jpg": ["a cat"], "cats/2.png": null}"#;
        let beside: [(&str, &[u8]); 3] = [("captions.json", map), ("dog.txt", b"a wolf"), ("cats/1.txt", b"")];
        let [first, second, dog] = captions(&beside);
        assert_eq!((first, dog), (vec!["a cat".to_owned()], vec!["a wolf".to_owned()]));
        assert!(second.is_empty());
    }

    #[test]
    fn broken_files_of_captions_are_named() {
        for (name, content, reason) in [
            ("metadata.jsonl", &b"{\"file_name\": \"dog.jpg\", \"text\": \"a\"}\n{"[..], "line 2: EOF while parsing"),
            ("metadata.jsonl", b"{\"text\": \"a dog\"}", "line 1: an entry needs file_name, a text"),
            ("metadata.jsonl", b"\n[]", "line 2: an entry needs file_name, a text"),
            (
                "metadata.jsonl",
                b"{\"file_name\": \"dog.jpg\", \"text\": 3}",
                "line 1: the text of dog.jpg is 3; a text or",
            ),
            ("metadata.jsonl", b"\xff", "it is not UTF-8"),
            ("captions.json", b"3", "a list of entries or a map of file names to captions is needed"),
            ("captions.json", b"[3]", "entry 1: an entry needs file_name, a text"),
            ("captions.json", b"{\"dog.jpg\": [3]}", "the text of dog.jpg is [3]; a text or a list of texts is needed"),
            ("captions.json", b"", "EOF while parsing"),
        ] {
            let (root, source) = with_captions(&[(name, content)]);
            let error = source.unwrap_err();
            assert!(matches!(error, DataError::Captions { .. }));
            let line = error.to_string();
            let beginning = format!("captions in {} cannot be read: ", root.path().join(name).display());
            assert!(line.starts_with(&beginning) && line.contains(reason) && !line.contains('\n'), "{line}");
        }
    }

    #[cfg(unix)]
    #[test]
    fn links_are_followed_but_not_in_circles() {
        use std::os::unix::fs::symlink;

        let root = tempfile::tempdir().unwrap();
        let elsewhere = tempfile::tempdir().unwrap();
        fs::write(elsewhere.path().join("linked.png"), png()).unwrap();
        fs::create_dir(root.path().join("inside")).unwrap();
        symlink(root.path(), root.path().join("inside/circle")).unwrap();
        symlink(elsewhere.path(), root.path().join("link")).unwrap();
        symlink("nowhere", root.path().join("lost.png")).unwrap();
        let source = FolderSource::open(root.path()).unwrap();
        assert_eq!(names(&source, root.path()), ["link/linked.png", "lost.png"]);
        assert!(matches!(source.load(1).unwrap_err().problem, ImageProblem::Unreadable(_)));
    }
}
