//! Chooses the device that a run computes on, and interprets its failures. It depends on precision only.

#[cfg(any(feature = "cuda", feature = "wgpu"))]
pub mod kernels;
pub mod panics;

use std::fmt;
use std::str::FromStr;

use burn::tensor::Device;
use serde::Serialize;

use crate::precision::Compute;

/// The value of `[run] device` or `--device`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Choice {
    /// CUDA, then wgpu, then the CPU, among those built in and present.
    Auto,
    /// The CPU, through burn-flex.
    Cpu,
    /// The n-th NVIDIA GPU.
    Cuda(usize),
    /// The n-th GPU that wgpu sees.
    Wgpu(usize),
    /// A CPU that wgpu sees as a GPU, such as llvmpipe.
    WgpuCpu,
}

/// Why a device cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// The text is not the name of a device.
    #[error("is \"{0}\", must be auto, cpu, cuda:N, wgpu:N or wgpu:cpu")]
    Unknown(String),
    /// The program was built without the backend.
    #[error("this program was built without {name}; build it with `cargo build --release --features {name}`")]
    NotBuiltIn {
        /// The feature's name.
        name: &'static str,
    },
    /// The backend is built in, but does not find the device or something that the device needs.
    #[error("device {choice} cannot be used: {reason}")]
    Absent {
        /// The device that was asked for.
        choice: Choice,
        /// What was found instead.
        reason: String,
    },
}

impl FromStr for Choice {
    type Err = DeviceError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let unknown = || DeviceError::Unknown(text.to_owned());
        let (kind, index) = text.split_once(':').unwrap_or((text, "0"));
        match (kind, index) {
            ("auto", "0") => Ok(Self::Auto),
            ("cpu", "0") => Ok(Self::Cpu),
            ("wgpu", "cpu") => Ok(Self::WgpuCpu),
            ("cuda", index) => index.parse().map(Self::Cuda).map_err(|_| unknown()),
            ("wgpu", index) => index.parse().map(Self::Wgpu).map_err(|_| unknown()),
            _ => Err(unknown()),
        }
    }
}

impl fmt::Display for Choice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda(index) => write!(f, "cuda:{index}"),
            Self::Wgpu(index) => write!(f, "wgpu:{index}"),
            Self::WgpuCpu => f.write_str("wgpu:cpu"),
        }
    }
}

/// A device and its description.
#[derive(Debug, Clone)]
pub struct Selected {
    /// The device, without autodiff.
    pub device: Device,
    /// The device that was chosen; never `auto`.
    pub choice: Choice,
    /// For the user: the device, and for `auto` why others were not used.
    pub description: String,
}

/// The memory of a device, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct DeviceMemory {
    /// Memory that no process uses now.
    pub free: u64,
    /// All memory.
    pub total: u64,
}

/// Asks the driver how much GPU memory this process uses, in bytes: the allocator's reservation and CUDA's own. `None`
/// if the driver does not know.
pub type ProcessMemory = Box<dyn Fn() -> Option<u64>>;

/// Device memory that is occupied until this is dropped.
#[derive(Debug)]
pub struct Ballast {
    _held: cuda::Held,
}

impl Selected {
    /// Returns free and total memory, if known: of the GPU with CUDA, of the machine or the container on the CPU.
    pub fn memory(&self) -> Option<DeviceMemory> {
        match self.choice {
            Choice::Cuda(index) => cuda::memory(index),
            Choice::Cpu => Some(host_memory()),
            Choice::Auto | Choice::Wgpu(_) | Choice::WgpuCpu => None,
        }
    }

    /// Returns a function that asks how much of the device's memory this process uses, if that can be known.
    pub fn process_memory(&self) -> Option<ProcessMemory> {
        match self.choice {
            Choice::Cuda(index) => cuda::process_memory(index),
            Choice::Auto | Choice::Cpu | Choice::Wgpu(_) | Choice::WgpuCpu => None,
        }
    }

    /// Returns a message for before the first step on a GPU that has no compiled kernels yet.
    pub fn first_use(&self) -> Option<String> {
        #[cfg(any(feature = "cuda", feature = "wgpu"))]
        if !matches!(self.choice, Choice::Auto | Choice::Cpu) {
            let path = crate::device::kernels::new_file()?;
            return Some(format!(
                "kernels: none for this GPU yet; the first step compiles and tunes them, which can take half an hour or \
                 more, and keeps them in {}",
                path.display()
            ));
        }
        None
    }

    /// Occupies all but `leave` bytes of the device's memory until the returned value is dropped. `None` if the device
    /// does not support it; the error is the device's.
    pub fn ballast(&self, leave: u64) -> Option<Result<Ballast, String>> {
        match self.choice {
            Choice::Cuda(index) => cuda::ballast(index, leave).map(|held| held.map(|held| Ballast { _held: held })),
            Choice::Auto | Choice::Cpu | Choice::Wgpu(_) | Choice::WgpuCpu => None,
        }
    }

    /// Whether the device can compute in a precision.
    pub fn supports(&self, compute: Compute) -> bool {
        self.device.supports_dtype(compute.dtype())
    }
}

impl Choice {
    /// Opens the device.
    ///
    /// # Errors
    /// If it is not built in or not there. `auto` always finds the CPU.
    pub fn open(self) -> Result<Selected, DeviceError> {
        match self {
            Self::Auto => Ok(auto()),
            Self::Cpu => Ok(Selected { device: Device::flex(), choice: self, description: cpu_description() }),
            Self::Cuda(index) => cuda::open(index),
            Self::Wgpu(_) | Self::WgpuCpu => wgpu::open(self),
        }
    }
}

impl Choice {
    /// Returns every device to look for: the first of each kind, even if it cannot be used, and all others that exist.
    pub fn all() -> Vec<Self> {
        let further = |device: fn(usize) -> Self| {
            std::iter::once(device(0)).chain((1..).map(device).take_while(|choice| choice.open().is_ok()))
        };
        let software = cfg!(feature = "wgpu").then_some(Self::WgpuCpu);
        further(Self::Cuda).chain(further(Self::Wgpu)).chain(software).chain([Self::Cpu]).collect()
    }
}

fn auto() -> Selected {
    let mut passed_over = Vec::new();
    for choice in [Choice::Cuda(0), Choice::Wgpu(0)] {
        match choice.open() {
            Ok(selected) => return selected,
            Err(DeviceError::NotBuiltIn { .. }) => {}
            Err(error) => passed_over.push(error.to_string()),
        }
    }
    let mut selected = Selected { device: Device::flex(), choice: Choice::Cpu, description: cpu_description() };
    if !passed_over.is_empty() {
        selected.description += &format!(" ({})", passed_over.join("; "));
    }
    selected
}

fn host_memory() -> DeviceMemory {
    let mut system = sysinfo::System::new();
    system.refresh_memory();
    let machine = DeviceMemory { free: system.available_memory(), total: system.total_memory() };
    match system.cgroup_limits() {
        Some(limits) => {
            DeviceMemory { free: machine.free.min(limits.free_memory), total: machine.total.min(limits.total_memory) }
        }
        None => machine,
    }
}

fn cpu_description() -> String {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    format!("cpu, {threads} thread{}", if threads == 1 { "" } else { "s" })
}

#[cfg(not(feature = "cuda"))]
mod cuda {
    use super::{DeviceError, DeviceMemory, ProcessMemory, Selected};

    pub fn open(_index: usize) -> Result<Selected, DeviceError> {
        Err(DeviceError::NotBuiltIn { name: "cuda" })
    }

    pub fn memory(_index: usize) -> Option<DeviceMemory> {
        None
    }

    pub fn process_memory(_index: usize) -> Option<ProcessMemory> {
        None
    }

    pub type Held = ();

    pub fn ballast(_index: usize, _leave: u64) -> Option<Result<Held, String>> {
        None
    }
}

#[cfg(feature = "cuda")]
mod cuda {
    use burn::tensor::{Device, DeviceType};

    use nvml_wrapper::Nvml;
    use nvml_wrapper::enums::device::UsedGpuMemory;
    use nvml_wrapper::struct_wrappers::device::ProcessInfo;

    use super::{Choice, DeviceError, DeviceMemory, ProcessMemory, Selected, describe};

    /// Returns what the driver reports, which counts all processes.
    pub fn memory(index: usize) -> Option<DeviceMemory> {
        let (free, total) = cudarc::driver::CudaContext::new(index).ok()?.mem_get_info().ok()?;
        Some(DeviceMemory { free: free as u64, total: total as u64 })
    }

    /// Asks NVML, which tells processes apart. It numbers GPUs in another order than CUDA does, hence the UUID.
    pub fn process_memory(index: usize) -> Option<ProcessMemory> {
        let uuid = cudarc::driver::CudaContext::new(index).ok()?.uuid().ok()?;
        let uuid = uuid_text(uuid.bytes.map(|byte| byte as u8));
        let nvml = Nvml::init().ok()?;
        Some(Box::new(move || {
            let processes = nvml.device_by_uuid(uuid.as_str()).ok()?.running_compute_processes().ok()?;
            memory_of(std::process::id(), &processes)
        }))
    }

    fn uuid_text(bytes: [u8; 16]) -> String {
        let hex = |range: std::ops::Range<usize>| -> String {
            bytes[range].iter().map(|byte| format!("{byte:02x}")).collect()
        };
        format!("GPU-{}-{}-{}-{}-{}", hex(0..4), hex(4..6), hex(6..8), hex(8..10), hex(10..16))
    }

    /// `None` in a container with process ids of its own, unless one of the driver's ids equals this one by chance.
    fn memory_of(process: u32, processes: &[ProcessInfo]) -> Option<u64> {
        let own = processes.iter().filter(|info| info.pid == process);
        own.fold(None, |sum, info| match info.used_gpu_memory {
            UsedGpuMemory::Used(bytes) => Some(sum.unwrap_or(0) + bytes),
            UsedGpuMemory::Unavailable => sum,
        })
    }

    /// Many pieces, the last ones small: one allocation of all free memory often fails.
    pub type Held = Vec<cudarc::driver::CudaSlice<u8>>;

    pub fn ballast(index: usize, leave: u64) -> Option<Result<Held, String>> {
        Some(allocate_ballast(index, leave).map_err(|error| error.to_string()))
    }

    fn allocate_ballast(index: usize, leave: u64) -> Result<Held, cudarc::driver::DriverError> {
        const PIECE: usize = 1 << 30;
        const SMALLEST: usize = 1 << 21;
        let context = cudarc::driver::CudaContext::new(index)?;
        let (stream, mut pieces) = (context.default_stream(), Vec::new());
        loop {
            let too_much = context.mem_get_info()?.0.saturating_sub(leave as usize);
            if too_much < SMALLEST {
                return Ok(pieces);
            }
            pieces.push(stream.alloc_zeros::<u8>(too_much.min(PIECE))?);
            stream.synchronize()?;
        }
    }

    /// Enumerates devices first, which asks for the driver: opening a device without a driver would panic.
    pub fn open(index: usize) -> Result<Selected, DeviceError> {
        let choice = Choice::Cuda(index);
        let found = Device::enumerate(DeviceType::Cuda).into_vec();
        let reason = match found.len() {
            0 => "no NVIDIA driver or GPU was found".to_owned(),
            count => format!("{count} were found, counted from 0"),
        };
        if index < found.len() {
            let name = cudarc::driver::CudaContext::new(index).and_then(|context| context.name());
            crate::device::kernels::configure(&name.unwrap_or_else(|_| "cuda".to_owned()));
        }
        // The runtime's own device type, so that an index cannot refer to another runtime's device by mistake.
        let device = (index < found.len()).then(|| Device::new(burn_cuda::CudaDevice::new(index)));
        let device = device.ok_or(DeviceError::Absent { choice, reason })?;
        if cubecl::cuda::install::cuda_path().is_none() {
            let reason = "CUDA's headers, with which kernels are compiled, were not found: set CUDA_PATH".to_owned();
            return Err(DeviceError::Absent { choice, reason });
        }
        Ok(Selected { description: describe(choice, &device), device, choice })
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        #[test]
        fn a_process_is_found_by_its_number_and_a_gpu_by_its_uuid() {
            let info = |pid, used_gpu_memory| ProcessInfo {
                pid,
                used_gpu_memory,
                gpu_instance_id: None,
                compute_instance_id: None,
            };
            let processes = [
                info(7, UsedGpuMemory::Used(100)),
                info(9, UsedGpuMemory::Used(20)),
                info(9, UsedGpuMemory::Used(3)),
                info(8, UsedGpuMemory::Unavailable),
            ];
            let of = |process| memory_of(process, &processes);
            assert_eq!([of(9), of(7), of(8), of(1)], [Some(23), Some(100), None, None]);
            let uuid = uuid_text(std::array::from_fn(|index| 16 * index as u8 + 10));
            assert_eq!(uuid, "GPU-0a1a2a3a-4a5a-6a7a-8a9a-aabacadaeafa");
        }
    }
}

#[cfg(not(feature = "wgpu"))]
mod wgpu {
    use super::{Choice, DeviceError, Selected};

    pub fn open(_choice: Choice) -> Result<Selected, DeviceError> {
        Err(DeviceError::NotBuiltIn { name: "wgpu" })
    }
}

#[cfg(feature = "wgpu")]
mod wgpu {
    use burn::tensor::{Device, DeviceKind, DeviceType};

    use super::{Choice, DeviceError, Selected, describe};

    /// Uses a CPU that wgpu lists as a GPU, such as llvmpipe, only if it is asked for by `wgpu:cpu`.
    pub fn open(choice: Choice) -> Result<Selected, DeviceError> {
        crate::device::kernels::configure("wgpu");
        let software = Device::wgpu(DeviceKind::Cpu);
        let (software, gpus): (Vec<_>, Vec<_>) =
            Device::enumerate(DeviceType::Wgpu).into_vec().into_iter().partition(|device| *device == software);
        let (index, found, what) = match choice {
            Choice::Wgpu(index) => (index, gpus, "GPUs"),
            _ => (0, software, "software GPUs"),
        };
        let reason = format!("wgpu found {} {what}", found.len());
        let device = found.into_iter().nth(index).ok_or(DeviceError::Absent { choice, reason })?;
        Ok(Selected { description: describe(choice, &device), device, choice })
    }
}

#[cfg(any(feature = "cuda", feature = "wgpu"))]
fn describe(choice: Choice, device: &Device) -> String {
    match device.identity() {
        Some(identity) => format!("{choice}, {}", identity.name),
        None => choice.to_string(),
    }
}

/// The CPU, or the device that the environment names: some tests also run on a GPU.
#[cfg(test)]
pub(crate) fn tested() -> Device {
    let choice = std::env::var("TRAINER_TEST_DEVICE").unwrap_or_else(|_| "cpu".to_owned());
    choice.parse::<Choice>().unwrap().open().unwrap().device
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_and_written_alike() {
        for name in ["auto", "cpu", "cuda:3", "wgpu:0", "wgpu:cpu"] {
            assert_eq!(name.parse::<Choice>().unwrap().to_string(), name);
        }
        assert_eq!("cuda".parse::<Choice>().unwrap(), Choice::Cuda(0));
        for name in ["", "gpu", "cuda:x", "cpu:1", "cuda:-1"] {
            assert!(name.parse::<Choice>().is_err(), "{name}");
        }
    }

    #[test]
    fn the_cpu_has_memory_and_all_precisions() {
        let cpu = Choice::Cpu.open().unwrap();
        assert!(Compute::ALL.into_iter().all(|compute| cpu.supports(compute)));
        let DeviceMemory { free, total } = cpu.memory().unwrap();
        assert!(0 < free && free <= total);
    }

    #[cfg(not(feature = "cuda"))]
    #[test]
    fn a_backend_that_is_not_built_in_says_how_to_build_it() {
        let error = Choice::Cuda(0).open().unwrap_err().to_string();
        assert!(error.contains("cargo build --release --features cuda"), "{error}");
    }
}
