//! Stands in for the crate `cubecl-llvm` 0.11.3, so that the CUDA runtime builds without LLVM.
//!
//! `cubecl-cuda` holds two kernel generators: CUDA C++ compiled by NVRTC, and PTX written by LLVM. Which one runs is
//! a feature (`cuda-cpp` of `cubecl`, which the trainer switches on, picks CUDA C++), but both are always built, and
//! the build script of the published `cubecl-llvm` downloads an LLVM of several hundred megabytes. This crate takes
//! its place through `[patch.crates-io]` in the workspace's `Cargo.toml`: it has the types that `cubecl-cuda` names and
//! refuses every kernel. The types that only a working LLVM could produce have no values.
//!
//! It follows one release. On an update of `cubecl`, compare the paths `cubecl_llvm::…` in `cubecl-cuda` with this file.

#![forbid(unsafe_code)]

use std::convert::Infallible;
use std::ffi::c_char;
use std::fmt;

use cubecl_environment::backtrace::BackTrace;
use cubecl_ir::nvidia::SmArch;
use cubecl_runtime::compiler::{CompilationError, Compiler};
use cubecl_runtime::kernel::{BufferIOAttr, KernelDefinition};

use nvptx::ptx_version::PtxVersion;

/// Why a kernel is refused, and what to change.
const NO_LLVM: &str = "this build has no LLVM and generates GPU kernels as CUDA C++ through NVRTC, but cubecl-cuda \
                       asked for its LLVM generator: switch on the feature `cuda-cpp` of the crate `cubecl`, or, to \
                       use LLVM, remove `cubecl-llvm` from [patch.crates-io] in the workspace's Cargo.toml";

/// What concerns NVIDIA GPUs.
pub mod nvptx {
    /// The version of PTX to write.
    pub mod ptx_version {
        use std::fmt;

        /// A version of PTX; there is none, as no PTX is written here.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum PtxVersion {}

        impl PtxVersion {
            /// The version for a driver: always none.
            pub fn for_driver(_driver: i32) -> Option<Self> {
                None
            }
        }

        impl fmt::Display for PtxVersion {
            fn fmt(&self, _: &mut fmt::Formatter<'_>) -> fmt::Result {
                match *self {}
            }
        }
    }
}

/// What the targets have in common.
pub mod shared {
    /// What the generator can do with a device.
    pub mod lowered_features {
        use cubecl_ir::DeviceProperties;

        /// The kind of GPU that kernels are meant for.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[non_exhaustive]
        pub enum GpuTarget {
            /// An NVIDIA GPU.
            Nvptx,
        }

        /// Takes nothing away from what the device offers: a kernel is refused whatever it uses.
        pub fn restrict_features(_properties: &mut DeviceProperties, _target: GpuTarget) {}
    }
}

/// The kind of machine code asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum LlvmTarget {
    /// PTX for NVIDIA GPUs.
    Nvptx,
}

/// The generator, which refuses every kernel.
#[derive(Clone, Debug)]
pub struct PlironCompiler {
    /// The kind of machine code asked for.
    pub target: LlvmTarget,
}

/// What a kernel is to be generated for.
#[derive(Clone, Debug, Default)]
pub struct PlironOptions {
    /// The architecture of a GPU that is not NVIDIA's: always none.
    pub arch: Option<Infallible>,
    /// The architecture of an NVIDIA GPU.
    pub sm_arch: Option<SmArch>,
    /// The version of PTX: always none.
    pub ptx_version: Option<PtxVersion>,
    /// Whether scalars and shapes are passed as kernel parameters.
    pub grid_constants: bool,
    /// The smallest alignment of buffers in main memory, which matters to no GPU.
    pub cpu_buffer_alignment: Option<u32>,
}

/// A generated kernel, of which there is none.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum PlironArtifact {
    /// A kernel in PTX.
    NvptxCode(NvptxModule),
}

impl fmt::Display for PlironArtifact {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self::NvptxCode(module) = self;
        f.write_str(&module.ir)
    }
}

/// A kernel in PTX, which cannot be made.
#[derive(Clone, Debug)]
pub struct NvptxModule {
    /// The PTX, ended by a NUL.
    pub ptx: Vec<c_char>,
    /// What the PTX was made from.
    pub ir: String,
    /// The shared memory that a launch needs, in bytes.
    pub shared_memory_size: usize,
    /// How the kernel uses each of its buffers.
    pub io: Vec<BufferIOAttr>,
    /// Has no value, so neither has the module.
    _none: Infallible,
}

impl Compiler for PlironCompiler {
    type Representation = PlironArtifact;
    type CompilationOptions = PlironOptions;

    fn buffer_io(artifact: &PlironArtifact) -> Option<Vec<BufferIOAttr>> {
        let PlironArtifact::NvptxCode(module) = artifact;
        Some(module.io.clone())
    }

    fn compile(
        &mut self,
        _: KernelDefinition,
        _: &PlironOptions,
    ) -> Result<PlironArtifact, CompilationError> {
        Err(CompilationError::Generic {
            reason: NO_LLVM.into(),
            backtrace: BackTrace::capture(),
        })
    }

    fn extension(&self) -> &'static str {
        "ll"
    }

    fn lang_tag(&self) -> &'static str {
        "llvm"
    }
}
