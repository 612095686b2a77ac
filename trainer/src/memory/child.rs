//! Measures in a child process: this program again, watched until it ends or its time is up.

use std::fs::{self, File};
use std::io;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

use super::{Gradient, Measured, MemoryError, Status};
use crate::device::panics::out_of_memory;
use crate::show::terminal::draw_target;

/// How often it is checked whether the process has ended: no short measurement gets longer by waiting.
const LOOK_EVERY: Duration = Duration::from_millis(10);

const SHOW_EVERY: Duration = Duration::from_millis(500);

/// Set in the environment of a child process, which starts none of its own: each would start another, without end.
const INSIDE: &str = "VQGAN_TRAINER_MEASURING";

/// Set from a signal handler: the current child process is killed, and no other one starts.
pub type Stopped = Arc<AtomicBool>;

/// How child processes measure.
#[derive(Debug, Default)]
pub struct Children {
    /// Optimizer steps of a measurement.
    pub steps: u64,
    /// How long a process may run. `None` for no limit: on a new GPU kernels may be tuned for an hour.
    pub timeout: Option<Duration>,
    /// Have the engine weigh by micro-batch, which is wrong.
    pub weigh_by_micro_batch: bool,
    /// Bytes of addresses that a process may use, if fewer than this one. Only on Unix.
    pub address_space: Option<u64>,
    /// See [`Stopped`].
    pub stopped: Stopped,
}

impl Children {
    /// Measures the run of the configuration file `config` in the empty `folder`, by the hidden verb `measure`. Returns the
    /// measurement or why there is none, and how long it took.
    pub(super) fn measure(&self, config: &Path, folder: &Path, gradient: &Gradient) -> Result<Measured, MemoryError> {
        let io = MemoryError::io;
        if std::env::var_os(INSIDE).is_some() {
            return Err(MemoryError::Nested(INSIDE));
        }
        let (stdout, stderr) = (folder.join("stdout"), folder.join("stderr"));
        let mut command = Command::new(std::env::current_exe().map_err(io("find this program"))?);
        command.arg("measure").arg("--config").arg(config).arg("--run-dir").arg(folder.join("run"));
        command.arg("--steps").arg(self.steps.to_string());
        if self.weigh_by_micro_batch {
            command.arg("--weigh-by-micro-batch");
        }
        if let Some(bytes) = self.address_space {
            command.arg("--address-space").arg(bytes.to_string());
        }
        match gradient {
            Gradient::Write(path) => drop(command.arg("--write-gradient").arg(path)),
            Gradient::Compare(path) => drop(command.arg("--compare-gradient").arg(path)),
            Gradient::Ignore => {}
        }
        let create = |path: &Path| File::create(path).map_err(io("write a row's output"));
        command.env(INSIDE, "1").stdin(Stdio::null()).stdout(create(&stdout)?).stderr(create(&stderr)?);
        let started = Instant::now();
        let mut child = command.spawn().map_err(io("start a row"))?;
        let ended = self.wait(&mut child, &stderr, started).map_err(io("wait for a row"));
        // Whatever happened, the process is gone before anything else begins.
        let _ = child.kill();
        let _ = child.wait();
        let ended = ended?;
        if self.stopped.load(Ordering::SeqCst) {
            return Err(MemoryError::Interrupted);
        }
        let said = fs::read_to_string(&stderr).unwrap_or_default();
        let said = without_places(&said, config);
        let measured = match ended {
            None => {
                let allowed = self.timeout.unwrap_or_else(|| started.elapsed());
                Err(Status::TimedOut(format!("not done after {} s", allowed.as_secs())))
            }
            Some(status) if status.success() => {
                let printed = fs::read_to_string(&stdout).unwrap_or_default();
                serde_json::from_str(&printed).map_err(|error| Status::Failed(format!("no figures: {error}")))
            }
            Some(status) => Err(why(status, &said)),
        };
        Ok((measured, started.elapsed()))
    }

    /// Waits for the process; `None` if it is still running when its time is up, or when a signal came. Meanwhile a terminal
    /// shows for how long, and what the process says of a GPU's kernels in `stderr`.
    fn wait(&self, child: &mut Child, stderr: &Path, started: Instant) -> io::Result<Option<ExitStatus>> {
        let shown = ProgressBar::with_draw_target(None, draw_target()).with_style(style());
        let mut looked = started;
        let ended = loop {
            if !shown.is_hidden() && looked.elapsed() >= SHOW_EVERY {
                looked = Instant::now();
                let said = fs::read_to_string(stderr).unwrap_or_default();
                let compiled = said.lines().rev().find(|line| line.starts_with("kernels: "));
                shown.set_message(compiled.unwrap_or_default().to_owned());
                shown.tick();
            }
            if let Some(status) = child.try_wait()? {
                break Some(status);
            }
            let late = self.timeout.is_some_and(|timeout| started.elapsed() >= timeout);
            if late || self.stopped.load(Ordering::SeqCst) {
                break None;
            }
            std::thread::sleep(LOOK_EVERY);
        };
        shown.finish_and_clear();
        Ok(ended)
    }
}

fn style() -> ProgressStyle {
    ProgressStyle::with_template("{spinner} {elapsed}  {wide_msg}").unwrap_or_else(|_| ProgressStyle::default_spinner())
}

/// Takes out the places in the child's own configuration file, which the user has never seen.
fn without_places(said: &str, config: &Path) -> String {
    let place = format!("{}:", config.display());
    let shorten = |line: &str| match line.split_once(&place) {
        Some((before, after)) => {
            format!("{before}{}\n", after.trim_start_matches(|c: char| c.is_ascii_digit() || c == ':').trim_start())
        }
        None => format!("{line}\n"),
    };
    said.lines().map(shorten).collect()
}

/// Why a process failed, from how it ended and what it said last.
fn why(status: ExitStatus, said: &str) -> Status {
    let lines = || said.lines().rev().map(str::trim).filter(|line| !line.is_empty());
    let error = lines().find_map(|line| line.strip_prefix("error: ")).or_else(|| lines().next());
    let error = error.unwrap_or("it said nothing").to_owned();
    // The first such line is the cause: to say more may need memory as well.
    if let Some(line) = out_of_memory(said) {
        return Status::OutOfMemory(line.trim_start_matches("error: ").to_owned());
    }
    match signal(status) {
        Some(KILLED) => Status::OutOfMemory("killed by signal 9, most likely because memory ran out".into()),
        Some(signal) => Status::Crashed(format!("signal {signal}: {error}")),
        None => Status::Failed(error),
    }
}

/// SIGKILL. It is not sent by this program, which kills only what ran out of time.
const KILLED: i32 = 9;

#[cfg(unix)]
fn signal(status: ExitStatus) -> Option<i32> {
    std::os::unix::process::ExitStatusExt::signal(&status)
}

#[cfg(not(unix))]
fn signal(_status: ExitStatus) -> Option<i32> {
    None
}

#[cfg(all(test, unix))]
mod tests {
    use std::os::unix::process::ExitStatusExt;

    use super::*;

    #[test]
    fn the_rows_own_file_is_not_spoken_of() {
        let said = "device: cpu\nerror: /tmp/x/row.toml:25: `data.resolution` is 33\nerror: /tmp/x/row.toml: no\n";
        let expected = "device: cpu\nerror: `data.resolution` is 33\nerror: no\n";
        assert_eq!(without_places(said, Path::new("/tmp/x/row.toml")), expected);
    }

    #[test]
    fn what_a_process_died_of_is_told_from_its_last_words() {
        let exit = |code: i32| ExitStatus::from_raw(code << 8);
        let signal = ExitStatus::from_raw;
        let said = "device: cpu\nmemory allocation of 274877906944 bytes failed\n";
        let words = "memory allocation of 274877906944 bytes failed".to_owned();
        assert_eq!(why(signal(6), said), Status::OutOfMemory(words));
        assert!(matches!(why(signal(9), "step 1/3\n"), Status::OutOfMemory(_)));
        assert_eq!(why(signal(11), "step 1/3\n"), Status::Crashed("signal 11: step 1/3".into()));
        let said = "error: the device failed at step 1: CUDA_ERROR_OUT_OF_MEMORY\n";
        assert!(matches!(why(exit(1), said), Status::OutOfMemory(_)));
        assert_eq!(why(exit(1), "device: cpu\nerror: no such thing\n"), Status::Failed("no such thing".into()));
        assert_eq!(why(exit(1), ""), Status::Failed("it said nothing".into()));
    }
}
