//! Reads whole files: regular files only, and at most an allowed number of bytes.

use std::fs::{self, File, Metadata, OpenOptions};
use std::io::{self, Read};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use crate::error::ImageProblem;

/// How long to wait for another program that holds a lease on a file: somewhat longer than Linux lets it.
const LEASE: Duration = Duration::from_secs(60);

/// How often opening such a file is tried again.
const RETRY: Duration = Duration::from_millis(50);

/// Reads a regular file of at most `limit` bytes.
///
/// # Errors
/// The path leads to something else, such as a pipe or a device, which may never answer; the file exceeds the limit; or
/// it cannot be read.
pub(crate) fn read(path: &Path, limit: u64) -> Result<Vec<u8>, ImageProblem> {
    open(path)?.read(limit)
}

/// An open regular file.
pub(crate) struct RegularFile {
    file: File,
    /// In bytes, as the system reports it; 0 for files without a size, such as those in `/proc`.
    pub size: u64,
}

/// Opens a regular file.
///
/// # Errors
/// As for [`read`].
pub(crate) fn open(path: &Path) -> Result<RegularFile, ImageProblem> {
    // This comes first, because opening alone can make a device act.
    check(&fs::metadata(path).map_err(unreadable)?)?;
    let file = open_without_waiting(path).map_err(unreadable)?;
    // Another file may have taken its place since.
    let metadata = file.metadata().map_err(unreadable)?;
    check(&metadata)?;
    Ok(RegularFile { file, size: metadata.len() })
}

impl RegularFile {
    /// Reads the whole file of at most `limit` bytes.
    ///
    /// # Errors
    /// The file exceeds the limit, or cannot be read.
    pub fn read(self, limit: u64) -> Result<Vec<u8>, ImageProblem> {
        let too_large = |size: u64| ImageProblem::TooLarge { size, limit };
        if self.size > limit {
            return Err(too_large(self.size));
        }
        let mut bytes = Vec::with_capacity(self.size as usize);
        // The size may be wrong: the file may grow, or have no size.
        self.file.take(limit + 1).read_to_end(&mut bytes).map_err(unreadable)?;
        match bytes.len() as u64 {
            size if size > limit => Err(too_large(size)),
            _ => Ok(bytes),
        }
    }
}

fn unreadable(error: io::Error) -> ImageProblem {
    ImageProblem::Unreadable(error.to_string())
}

fn open_without_waiting(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true);
    #[cfg(unix)]
    {
        use std::os::unix::fs::OpenOptionsExt;

        use rustix::fs::OFlags;
        options.custom_flags((OFlags::NONBLOCK | OFlags::NOCTTY).bits() as i32);
    }
    let began = Instant::now();
    loop {
        match options.open(path) {
            // Another program holds a lease on the file, and the system is asking it to give the lease up.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock && began.elapsed() < LEASE => thread::sleep(RETRY),
            result => return result,
        }
    }
}

fn check(metadata: &Metadata) -> Result<(), ImageProblem> {
    match metadata.is_file() {
        true => Ok(()),
        false => Err(ImageProblem::NotAFile(kind(metadata))),
    }
}

fn kind(metadata: &Metadata) -> &'static str {
    #[cfg(unix)]
    {
        use std::os::unix::fs::FileTypeExt;

        let kind = metadata.file_type();
        if kind.is_fifo() {
            return "a pipe";
        } else if kind.is_socket() {
            return "a socket";
        } else if kind.is_char_device() || kind.is_block_device() {
            return "a device";
        }
    }
    if metadata.is_dir() { "a folder" } else { "something else" }
}

#[cfg(all(test, unix))]
pub(crate) mod tests {
    use std::os::unix::fs::symlink;
    use std::os::unix::net::UnixListener;

    use rustix::fs::{CWD, FileType, Mode, mknodat};

    use super::*;

    /// A pipe that nobody writes to: whoever opens it as a file waits for ever.
    pub(crate) fn make_pipe(path: &Path) {
        mknodat(CWD, path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
    }

    #[test]
    fn only_regular_files_are_opened() {
        let root = tempfile::tempdir().unwrap();
        let at = |name: &str| root.path().join(name);
        fs::write(at("file"), "12345").unwrap();
        symlink("file", at("link")).unwrap();
        make_pipe(&at("pipe"));
        symlink("pipe", at("link to a pipe")).unwrap();
        let _listener = UnixListener::bind(at("socket")).unwrap();
        symlink("/dev/zero", at("zero")).unwrap();
        fs::create_dir(at("folder")).unwrap();
        for (name, expected) in [
            ("file", Ok(b"12345".to_vec())),
            ("link", Ok(b"12345".to_vec())),
            ("pipe", Err(ImageProblem::NotAFile("a pipe"))),
            ("link to a pipe", Err(ImageProblem::NotAFile("a pipe"))),
            ("socket", Err(ImageProblem::NotAFile("a socket"))),
            ("zero", Err(ImageProblem::NotAFile("a device"))),
            ("folder", Err(ImageProblem::NotAFile("a folder"))),
        ] {
            assert_eq!(read(&at(name), 5), expected, "{name}");
        }
        assert!(matches!(read(&at("none"), 5), Err(ImageProblem::Unreadable(_))));
    }

    // What takes a file's place between the first look and the opening.
    #[test]
    fn opening_a_pipe_does_not_wait() {
        let root = tempfile::tempdir().unwrap();
        let pipe = root.path().join("pipe");
        make_pipe(&pipe);
        let file = open_without_waiting(&pipe).unwrap();
        assert_eq!(check(&file.metadata().unwrap()), Err(ImageProblem::NotAFile("a pipe")));
    }

    #[test]
    fn no_more_is_read_than_allowed() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("file");
        fs::write(&path, "123456").unwrap();
        assert_eq!(read(&path, 6).unwrap(), b"123456");
        assert_eq!(read(&path, 5), Err(ImageProblem::TooLarge { size: 6, limit: 5 }));
        // It grows after its size was taken.
        let file = open(&path).unwrap();
        fs::write(&path, "123456789").unwrap();
        assert_eq!(file.read(7), Err(ImageProblem::TooLarge { size: 8, limit: 7 }));
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_file_without_a_size_is_read_up_to_the_limit() {
        let path = Path::new("/proc/self/status");
        assert_eq!(open(path).unwrap().size, 0);
        assert!(read(path, 1 << 20).unwrap().starts_with(b"Name:"));
        assert_eq!(read(path, 5), Err(ImageProblem::TooLarge { size: 6, limit: 5 }));
    }
}
