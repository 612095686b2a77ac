//! Runs the program.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// What a finished command said.
pub struct Finished {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

/// The command with `arguments`, in `folder`, without any way to a network or to this machine's own settings.
pub fn command(folder: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_train"));
    command
        .args(arguments)
        .current_dir(folder)
        .env("HF_HOME", folder.join("hf"))
        .env("HF_HUB_OFFLINE", "1")
        .env("XDG_CACHE_HOME", folder.join("cache"))
        .env_remove("HF_TOKEN")
        .env_remove("RUST_BACKTRACE")
        .env_remove("HF_ENDPOINT");
    command
}

pub fn run(folder: &Path, arguments: &[&str]) -> Finished {
    finished(command(folder, arguments).output().unwrap())
}

pub fn finished(output: Output) -> Finished {
    Finished {
        code: output.status.code().unwrap_or(-1),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

impl Finished {
    /// Fails the test unless the command succeeded.
    pub fn success(self) -> Self {
        assert_eq!(self.code, 0, "stdout:\n{}\nstderr:\n{}", self.stdout, self.stderr);
        self
    }

    /// Fails the test unless the command ended with `code`, no panic and one line of error, which is returned.
    pub fn error(self, code: i32) -> String {
        assert_eq!(self.code, code, "stdout:\n{}\nstderr:\n{}", self.stdout, self.stderr);
        assert!(!self.stderr.contains("panicked"), "{}", self.stderr);
        let errors: Vec<&str> = self.stderr.lines().filter(|line| line.starts_with("error: ")).collect();
        assert_eq!(errors.len(), 1, "{}", self.stderr);
        assert_eq!(self.stderr.lines().last(), Some(errors[0]), "{}", self.stderr);
        errors[0].to_owned()
    }
}

/// Copies a folder with all in it to where nothing is.
pub fn copy_folder(from: &Path, to: &Path) {
    std::fs::create_dir(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let (from, to) = (entry.path(), to.join(entry.file_name()));
        if from.is_dir() {
            copy_folder(&from, &to);
        } else {
            std::fs::copy(from, to).unwrap();
        }
    }
}

/// A folder of `tests/fixtures`.
pub fn fixture(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures").join(path)
}

/// The tiniest run that still has every part: four steps of a small model on drawn images.
pub const SMALL: &str = r#"
[run]
steps = 4
seed = 3
device = "cpu"

[batch]
effective = 4
micro = 3

[model]
architecture = "tiny"
channels = [8, 16]
attention_levels = [1]
mid_attention = true
groups = 4
latent_channels = 8
codes = 32

[data]
source = "shapes"
images = 100
resolution = 16
validation = 4

[optimizer]
learning_rate = 1e-3

[ema]
decay = 0.9

[checkpoints]
every_steps = 2

[validation]
every_steps = 2
samples = 3
"#;

/// A folder with [`SMALL`] in it as `small.toml`.
pub fn small() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("small.toml"), SMALL).unwrap();
    folder
}
