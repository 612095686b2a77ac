use image::ImageFormat;

use super::*;
use crate::decode::tests::{ALONE, OTHERS, encode, peak_of, quadrants};

fn png() -> Vec<u8> {
    encode(quadrants(16, 16), ImageFormat::Png)
}

fn names(source: &FolderSource, root: &Path) -> Vec<String> {
    let inside = |index: usize| source.files[index].strip_prefix(root).unwrap();
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
    let source = FolderSource::open(root.path(), CaptionFiles::Read).unwrap();
    assert_eq!(names(&source, root.path()), ["a.JPG", "b/10.bmp", "b/2.WebP", "b/c/1.jpeg", "z.PNG"]);
    // The names lie about the format; the bytes do not.
    for index in 0..source.len() {
        assert_eq!(source.load(index).unwrap().pixels, quadrants(16, 16));
    }
}

#[test]
fn images_that_are_decoded_at_a_time_share_their_memory() {
    const MIB: u64 = 1 << 20;
    let _alone = ALONE.lock();
    let root = tempfile::tempdir().unwrap();
    // 24 MiB as grey and 72 as RGB, which a decoder has at the same time.
    let page = encode(image::GrayImage::from_fn(5000, 5000, |x, _| image::Luma([x as u8])), ImageFormat::Png);
    for number in 0..6 {
        fs::write(root.path().join(format!("{number}.png")), &page).unwrap();
    }
    let mut source = FolderSource::open(root.path(), CaptionFiles::Ignore).unwrap();
    let mut peak = |budget: u64| {
        source.budget = Budget::new(budget * MIB);
        peak_of(|| {
            std::thread::scope(|scope| {
                let source = &source;
                let load = |index| move || _ = source.load(index).unwrap();
                (0..6).for_each(|index| _ = scope.spawn(load(index)));
            });
        })
    };
    let (shared, one_by_one, alone) = (peak(200), peak(100), peak(1));
    assert!(shared > 100 * MIB && shared <= 200 * MIB + OTHERS, "{shared}");
    assert!(one_by_one <= 100 * MIB + OTHERS, "{one_by_one}");
    assert!(alone > MIB && alone <= 100 * MIB + OTHERS, "{alone}");
}

#[test]
fn a_wrong_place_is_named() {
    let root = tempfile::tempdir().unwrap();
    let missing = root.path().join("missing");
    let error = FolderSource::open(&missing, CaptionFiles::Read).unwrap_err();
    assert!(matches!(error, DataError::Missing { .. }));
    assert!(error.to_string().contains(&*missing.to_string_lossy()));

    let file = root.path().join("notes.txt");
    fs::write(&file, "x").unwrap();
    assert!(matches!(FolderSource::open(&file, CaptionFiles::Read).unwrap_err(), DataError::NotAFolder { .. }));

    fs::create_dir(root.path().join("empty")).unwrap();
    fs::write(root.path().join("empty/data.csv"), "x").unwrap();
    let error = FolderSource::open(root.path(), CaptionFiles::Read).unwrap_err();
    let DataError::NoImages { other_files: 2, kinds, extensions, .. } = &error else { panic!("{error}") };
    assert_eq!((&**kinds, &**extensions), (": 1 csv, 1 txt", "jpg, jpeg, png, webp, gif, tif, tiff, bmp"));
}

#[test]
fn bad_files_are_named_with_the_reason() {
    let root = tempfile::tempdir().unwrap();
    fs::write(root.path().join("0-cut.png"), &png()[..60]).unwrap();
    fs::write(root.path().join("1-empty.jpg"), "").unwrap();
    fs::write(root.path().join("2-text.jpg"), "not found").unwrap();
    let source = FolderSource::open(root.path(), CaptionFiles::Read).unwrap();
    for index in 0..3 {
        let error = source.load(index).unwrap_err();
        let line = error.to_string();
        assert!(line.starts_with(&source.name(index)), "{line}");
        assert!(!line.contains('\n'), "{line}");
    }
    assert_eq!(source.load(1).unwrap_err().problem, ImageProblem::Empty);
    assert_eq!(source.load(2).unwrap_err().problem, ImageProblem::UnknownFormat);
}

fn write(root: &Path, name: &str, content: impl AsRef<[u8]>) {
    fs::create_dir_all(root.join(name).parent().unwrap()).unwrap();
    fs::write(root.join(name), content).unwrap();
}

fn with_captions(files: &[(&str, &[u8])]) -> (tempfile::TempDir, Result<FolderSource, DataError>) {
    let root = tempfile::tempdir().unwrap();
    for name in ["cats/1.jpg", "cats/2.png", "dog.jpg"] {
        write(root.path(), name, png());
    }
    for (name, content) in files {
        write(root.path(), name, content);
    }
    let source = FolderSource::open(root.path(), CaptionFiles::Read);
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
    let (root, source) =
        with_captions(&[("cats/1.txt", b"a cat"), ("cats/2.txt", b" \n\n"), ("dog.txt", b"un chien tr\xe8s grand")]);
    let source = std::sync::Arc::new(source.unwrap());
    assert_eq!([0, 1, 2].map(|index| source.captions(index).len()), [1, 0, 0]);
    let transform = crate::Transform::training(8, true);
    let set = |indices| crate::TrainingSet::new(source.clone(), indices, transform, 0, 0).unwrap();
    let missing = |indices| set(indices).first_without_caption().map(|error| (error.name, error.problem.to_string()));
    let is = |name: &str, reason: &str| {
        let reason = format!("has no caption: {reason}; there is no file of metadata");
        Some((root.path().join(name).display().to_string(), reason))
    };
    assert_eq!(missing(vec![0, 1, 2]), is("cats/2.png", "2.txt is empty"));
    assert_eq!(missing(vec![0, 2]), is("dog.jpg", "dog.txt is not UTF-8 or UTF-16"));
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
        ("metadata.jsonl", b"{\"file_name\": \"dog.jpg\", \"text\": 3}", "line 1: the text of dog.jpg is 3; a text or"),
        ("metadata.jsonl", b"\xff", "it is not UTF-8 or UTF-16"),
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

fn utf16(text: &str, unit: fn(u16) -> [u8; 2]) -> Vec<u8> {
    std::iter::once(0xFEFF).chain(text.encode_utf16()).flat_map(unit).collect()
}

/// As programs of other systems write it.
fn encodings(text: &str) -> [Vec<u8>; 4] {
    let windows = text.replace('\n', "\r\n");
    [
        format!("\u{feff}{text}").into_bytes(),
        windows.clone().into_bytes(),
        utf16(&windows, u16::to_le_bytes),
        utf16(text, u16::to_be_bytes),
    ]
}

#[test]
fn text_of_every_encoding_is_read() {
    let line = r#"{"file_name": "dog.jpg", "text": "a café"}"#;
    for (name, text) in [
        ("dog.txt", "a café\n".to_owned()),
        ("metadata.jsonl", format!("{line}\n\n")),
        ("captions.json", format!("[\n{line}\n]\n")),
        ("metadata.csv", "file_name,text\ndog.jpg,a café\n".to_owned()),
        (
            "captions_all.json",
            r#"{"images": [{"id": 7, "file_name": "dog.jpg"}],
                "annotations": [{"image_id": 7, "caption": "a café"}]}"#
                .to_owned(),
        ),
    ] {
        for bytes in encodings(&text) {
            assert_eq!(captions(&[(name, &bytes)])[2], ["a café"], "{name} {bytes:?}");
        }
    }
}

#[test]
fn metadata_of_subfolders_name_images_from_there() {
    let lines = br#"{"file_name": "1.jpg", "caption": "a cat"}
        {"file_name": "..\\dog.jpg", "captions": ["a dog", "a good dog"]}"#;
    let [first, second, dog] = captions(&[("cats/metadata.jsonl", lines)]);
    assert_eq!((first, dog), (vec!["a cat".to_owned()], vec!["a dog".to_owned(), "a good dog".to_owned()]));
    assert!(second.is_empty());

    let table = b"id, file_name ,caption,text\n1,.\\2.png,\"two cats, asleep\",\n2,1.jpg,a,b\n3,1.jpg,,\n";
    let [first, second, dog] = captions(&[("cats/metadata.csv", table)]);
    assert_eq!((first, second), (vec!["b".to_owned()], vec!["two cats, asleep".to_owned()]));
    assert!(dog.is_empty());

    let root = br#"{"file_name": "cats\\1.jpg", "text": "", "caption": "a cat"}"#;
    assert_eq!(captions(&[("metadata.jsonl", root)])[0], ["a cat"]);
    // Of other things than images.
    let source = with_captions(&[("cats/metadata.jsonl", br#"{"id": 3}"#), ("metadata.csv", b"id,breed\n1,calico")]);
    assert_eq!(source.1.unwrap().notes(), Vec::<String>::new());
}

#[cfg(unix)]
#[test]
fn a_backslash_that_is_part_of_a_name_stays_one() {
    let root = tempfile::tempdir().unwrap();
    write(root.path(), "a/b.jpg", png());
    fs::write(root.path().join("a\\b.jpg"), png()).unwrap();
    write(root.path(), "metadata.csv", "file_name,text\na\\b.jpg,one\na/b.jpg,two\n");
    let source = FolderSource::open(root.path(), CaptionFiles::Read).unwrap();
    assert_eq!(names(&source, root.path()).len(), 2);
    assert_eq!([0, 1].map(|index| source.captions(index)), [["two"], ["one"]]);
}

#[test]
fn captions_of_coco_find_their_images() {
    let document = br#"{"info": {}, "licenses": [],
        "images": [{"id": 1, "file_name": "1.jpg", "height": 3}, {"id": "d", "file_name": "dog.jpg"}, {"id": 9, "file_name": "x.jpg"}],
        "annotations": [{"id": 5, "image_id": "d", "caption": " A dog. "}, {"id": 6, "image_id": 1, "caption": "A cat."},
                        {"id": 7, "image_id": 1, "caption": "A tired cat."}, {"id": 8, "image_id": 44, "caption": "Gone."}]}"#;
    for name in ["captions_val2017.json", "annotations/captions_val2017.json", "cats/annotations/captions_x.json"] {
        let [first, second, dog] = captions(&[(name, document)]);
        assert_eq!(first, ["A cat.", "A tired cat."], "{name}");
        assert_eq!((dog, second.len()), (vec!["A dog.".to_owned()], 0), "{name}");
    }
    assert_eq!(captions(&[("captions.json", document)])[2], ["A dog."]);
    assert!(captions(&[("cats/captions_val2017.json", document)]).iter().all(Vec::is_empty));

    // By the place that it names, and not by the name alone.
    let (root, _) = with_captions(&[("annotations/captions_a.json", document), ("more/1.jpg", b"another")]);
    let source = FolderSource::open(root.path(), CaptionFiles::Read).unwrap();
    assert_eq!(names(&source, root.path())[3], "more/1.jpg");
    assert!(source.captions(0).is_empty() && source.captions(3).is_empty());
    assert!(source.why_no_captions(0).ends_with("several images have it"), "{}", source.why_no_captions(0));
    write(root.path(), "1.jpg", "one more");
    let source = FolderSource::open(root.path(), CaptionFiles::Read).unwrap();
    assert_eq!((&*names(&source, root.path())[0], source.captions(0).len()), ("1.jpg", 2));

    let (root, source) = with_captions(&[("captions_a.json", b"[1]"), ("dog.txt", b"a dog")]);
    assert_eq!(source.unwrap().captions(2), ["a dog"]);
    write(root.path(), "captions_a.json", &document[..100]);
    let error = FolderSource::open(root.path(), CaptionFiles::Read).unwrap_err();
    assert!(matches!(error, DataError::Captions { .. }), "{error}");
}

#[test]
fn files_with_captions_are_opened_only_if_they_are_of_use() {
    let (root, source) = with_captions(&[("metadata.jsonl", b"{"), ("cats/1.txt", b"a cat")]);
    assert!(matches!(source.unwrap_err(), DataError::Captions { .. }));
    let source = FolderSource::open(root.path(), CaptionFiles::Ignore).unwrap();
    assert_eq!(names(&source, root.path()), ["cats/1.jpg", "cats/2.png", "dog.jpg"]);
    assert!((0..3).all(|index| source.captions(index).is_empty()));
    // Neither are the samples others.
    fs::remove_file(root.path().join("metadata.jsonl")).unwrap();
    let pixels = |files| {
        let source = Arc::new(FolderSource::open(root.path(), files).unwrap());
        let set = crate::TrainingSet::new(source, vec![0, 1, 2], crate::Transform::training(8, true), 5, 0).unwrap();
        (0..20).map(|draw| set.sample(draw).unwrap()).map(|sample| (sample.index, sample.pixels)).collect::<Vec<_>>()
    };
    assert_eq!(pixels(CaptionFiles::Ignore), pixels(CaptionFiles::Read));
}

#[test]
fn a_missing_caption_says_what_was_found() {
    let why = |files: &[(&str, &[u8])]| {
        let (_root, source) = with_captions(files);
        let source = source.unwrap();
        assert!(source.captions(2).is_empty());
        source.why_no_captions(2)
    };
    let lines = br#"{"file_name": "images/dgo.jpg", "text": "a dog"}
        {"file_name": "cats/1.jpg", "text": "a cat"}"#;
    let long = "a very long dog ".repeat(5000);
    for (files, expected) in [
        (&[][..], "there is no dog.txt; there is no file of metadata"),
        (&[("dog.txt", &b"\xef\xbb\xbf\r\n"[..])], "dog.txt is empty; there is no file of metadata"),
        (&[("dog.txt", b"\xff\xfea")], "dog.txt is not UTF-8 or UTF-16; there is no file of metadata"),
        (
            &[("dog.txt", long.as_bytes())],
            "dog.txt: is too large: 80000 bytes, and the limit is 65536; there is no file of metadata",
        ),
        (
            &[("metadata.csv", b"file_name,text\ndog.jpg, ")],
            "there is no dog.txt; its entry in metadata.csv has no text",
        ),
        (
            &[("metadata.jsonl", lines)],
            "there is no dog.txt; metadata.jsonl has no entry for it; the nearest name there is images/dgo.jpg",
        ),
        (
            &[("cats/metadata.jsonl", br#"{"file_name": "1.jpg"}"#), ("metadata.csv", b"name,text\ndog.jpg,a dog")],
            "there is no dog.txt; cats/metadata.jsonl has no entry for it; metadata.csv was not used: it has no column \
             file_name",
        ),
        (
            &[("metadata.csv", b"file_name,breed\ndog.jpg,poodle")],
            "there is no dog.txt; metadata.csv was not used: it has none of the columns text, caption, captions",
        ),
    ] {
        assert_eq!(why(files), expected);
    }
}

#[test]
fn quoted_values_are_cut() {
    let long = "very ".repeat(100_000);
    let entry = |name: &str, text: String| format!("{{\"file_name\": \"{name}\", \"text\": {text}}}");
    for (name, text) in [
        ("metadata.jsonl", entry("dog.jpg", format!("[3, \"{long}\"]"))),
        ("metadata.jsonl", entry(&long, "3".to_owned())),
        ("captions.json", format!("{{\"{long}\": 3}}")),
        ("captions.json", format!("{{\"images\": [\"{long}\"], \"annotations\": []}}")),
        ("metadata.csv", format!("file_name,text\ndog.jpg,a,\"{long}\"\n")),
    ] {
        let error = with_captions(&[(name, text.as_bytes())]).1.unwrap_err();
        let DataError::Captions { reason, .. } = &error else { panic!("{error}") };
        assert!(reason.chars().count() < 320 && !reason.contains('\n'), "{reason}");
    }
    let document = format!("{{\"images\": [\"{long}\"]}}");
    let reason = with_captions(&[("captions_a.json", document.as_bytes())]).1.unwrap().why_no_captions(2);
    assert!(reason.len() < 400 && reason.contains("captions_a.json was not used"), "{reason}");
}

#[test]
fn kinds_that_are_not_read_are_counted() {
    let root = tempfile::tempdir().unwrap();
    for name in ["a.HEIC", "b.heic", "b/c.heic", "d.avif", "e.txt", "f", "g.json"] {
        write(root.path(), name, "x");
    }
    let error = FolderSource::open(root.path(), CaptionFiles::Ignore).unwrap_err();
    let DataError::NoImages { other_files: 7, kinds, .. } = error else { panic!("{error}") };
    assert_eq!(kinds, ": 3 heic, 1 without extension, 1 avif, 1 json, 1 txt");
    write(root.path(), "h.png", png());
    let notes = FolderSource::open(root.path(), CaptionFiles::Ignore).unwrap().notes();
    assert_eq!(notes.len(), 1);
    assert!(notes[0].starts_with("4 of 5 files in ") && notes[0].contains("(3 heic, 1 avif)"), "{notes:?}");
    fs::remove_file(root.path().join("d.avif")).unwrap();
    fs::remove_dir_all(root.path().join("b")).unwrap();
    fs::remove_file(root.path().join("a.HEIC")).unwrap();
    fs::remove_file(root.path().join("b.heic")).unwrap();
    assert!(FolderSource::open(root.path(), CaptionFiles::Ignore).unwrap().notes().is_empty());
}

#[cfg(unix)]
#[test]
fn a_file_counts_once_by_its_first_name() {
    use std::os::unix::fs::symlink;

    let root = tempfile::tempdir().unwrap();
    let elsewhere = tempfile::tempdir().unwrap();
    let at = |name: &str| root.path().join(name);
    for (number, name) in ["a/1.png", "b/2.png", "c/3.png", "z.png"].into_iter().enumerate() {
        write(root.path(), name, encode(quadrants(16 + number as u32, 16), ImageFormat::Png));
    }
    fs::create_dir(at("all")).unwrap();
    fs::hard_link(at("a/1.png"), at("all/1.png")).unwrap();
    symlink(at("b/2.png"), at("all/2.png")).unwrap();
    // What leads out of the folder, twice; a whole folder; a link to a link.
    fs::write(elsewhere.path().join("out.png"), encode(quadrants(30, 16), ImageFormat::Png)).unwrap();
    symlink(elsewhere.path().join("out.png"), at("all/x.png")).unwrap();
    symlink(elsewhere.path(), at("out")).unwrap();
    symlink(at("c"), at("again")).unwrap();
    symlink(at("all/2.png"), at("0.png")).unwrap();
    symlink("nowhere", at("lost 1.png")).unwrap();
    symlink("nowhere", at("lost 2.png")).unwrap();
    // The same pixels in a file of its own.
    fs::copy(at("z.png"), at("zz.png")).unwrap();
    let expected = ["0.png", "a/1.png", "again/3.png", "all/x.png", "lost 1.png", "lost 2.png", "z.png", "zz.png"];
    write(root.path(), "b/2.txt", "a caption beside another name");
    write(root.path(), "metadata.csv", "file_name,text\nc/3.png,by another name\nall/1.png,by a third\n");
    let source = FolderSource::open(root.path(), CaptionFiles::Read).unwrap();
    assert_eq!(names(&source, root.path()), expected);
    assert_eq!(source.captions(0), ["a caption beside another name"]);
    assert_eq!(
        (source.captions(1), source.captions(2)),
        (vec!["by a third".to_owned()], vec!["by another name".to_owned()])
    );
    let notes = source.notes();
    assert!(notes.len() == 1 && notes[0].starts_with("5 more names"), "{notes:?}");
    // Every split keeps the same image out of training.
    let split = crate::Split::new(source.len(), crate::Validation::Count(3), 1).unwrap();
    let size = |index: &usize| source.load(*index).ok().map(|image| image.pixels.into_raw()).filter(|_| *index < 6);
    let training: Vec<_> = split.train.iter().filter_map(size).collect();
    assert!(split.validation.iter().filter_map(size).all(|pixels| !training.contains(&pixels)));
}

#[cfg(unix)]
#[test]
fn what_is_no_file_is_a_bad_image_and_no_caption() {
    use std::os::unix::fs::symlink;

    use crate::files::tests::make_pipe;

    let root = tempfile::tempdir().unwrap();
    let at = |name: &str| root.path().join(name);
    make_pipe(&at("0-pipe.png"));
    symlink("/dev/zero", at("1-zero.png")).unwrap();
    symlink("0-pipe.png", at("2-link.jpg")).unwrap();
    write(root.path(), "3.png", png());
    write(root.path(), "4.png", png());
    make_pipe(&at("3.txt"));
    symlink("/dev/zero", at("4.txt")).unwrap();
    let source = FolderSource::open(root.path(), CaptionFiles::Read).unwrap();
    // The link to the pipe is the pipe.
    assert_eq!(names(&source, root.path()), ["0-pipe.png", "1-zero.png", "3.png", "4.png"]);
    let problem = |index| source.load(index).unwrap_err().problem;
    assert_eq!([0, 1].map(problem), [ImageProblem::NotAFile("a pipe"), ImageProblem::NotAFile("a device")]);
    assert!(source.captions(2).is_empty() && source.captions(3).is_empty());
    assert!(source.why_no_captions(2).starts_with("3.txt: is a pipe, not a file"), "{}", source.why_no_captions(2));
    // What takes a file's place after it was listed.
    fs::remove_file(at("4.png")).unwrap();
    make_pipe(&at("4.png"));
    assert_eq!(problem(3), ImageProblem::NotAFile("a pipe"));

    // They count as bad images, by name.
    let source = Arc::new(source);
    let transform = crate::Transform::training(8, true);
    let set = crate::TrainingSet::new(source.clone(), vec![0, 1, 2], transform, 0, 2).unwrap();
    assert!((0..9).all(|draw| set.sample(draw).unwrap().index == 2));
    let mut named: Vec<String> = set.take_warnings().into_iter().map(|warning| warning.name).collect();
    named.sort();
    assert_eq!(named, [source.name(0), source.name(1)]);
    let set = crate::TrainingSet::new(source, vec![0, 1, 2], transform, 0, 1).unwrap();
    let error = (0..9).find_map(|draw| set.sample(draw).err());
    assert!(matches!(error, Some(DataError::TooManyBad { count: 2, limit: 1, .. })));

    make_pipe(&at("metadata.jsonl"));
    let error = FolderSource::open(root.path(), CaptionFiles::Read).unwrap_err();
    assert!(matches!(error, DataError::Captions { .. }), "{error}");
    assert!(FolderSource::open(root.path(), CaptionFiles::Ignore).is_ok());
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
    let source = FolderSource::open(root.path(), CaptionFiles::Read).unwrap();
    assert_eq!(names(&source, root.path()), ["link/linked.png", "lost.png"]);
    assert!(matches!(source.load(1).unwrap_err().problem, ImageProblem::Unreadable(_)));
}
