//! Converts named host tensors to Burn parameters and back.
//!
//! Names are taming's (`encoder.down.0.block.0.norm1.weight`), which are also the paths of the modules' fields. So a
//! configuration's globs, checkpoints and errors use the same name.

use std::collections::BTreeMap;

use burn::module::{Module, ModuleVisitor, Param, ParamId};
use burn::tensor::{DType, Device, Tensor, TensorData};
use checkpoints::{Dtype, HostTensor};

use super::statistics_dtype;

/// Parameters by canonical name.
pub type StateDict = BTreeMap<String, HostTensor>;

/// Why a model could not be built from a state dict.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// The architecture asks for a tensor that the state dict does not have.
    #[error("the weights lack `{0}`")]
    Missing(String),
    /// A tensor has the wrong number of dimensions.
    #[error("`{name}` has shape {shape:?}, must have {rank} dimensions")]
    Rank {
        /// The parameter's name.
        name: String,
        /// The shape that was found.
        shape: Vec<usize>,
        /// The number of dimensions that is needed.
        rank: usize,
    },
    /// A tensor has the wrong shape.
    #[error("`{name}` has shape {shapes}")]
    Shape {
        /// The tensor's name.
        name: String,
        /// The shape that was found, and the one that is needed.
        shapes: String,
    },
    /// The images are too small for the discriminator to give a logit.
    #[error("the discriminator needs images of at least {smallest} pixels, but data.resolution is {resolution}")]
    ImagesTooSmall {
        /// The smallest height and width, in pixels.
        smallest: usize,
        /// The run's `data.resolution`.
        resolution: u32,
    },
    /// The device could not return a tensor.
    #[error("the device failed while a weight was read back: {0}")]
    Device(String),
}

/// Reads the parameters below one path of a state dict.
pub struct WeightReader<'a> {
    state: &'a StateDict,
    device: &'a Device,
    dtype: DType,
    tracked: bool,
    path: String,
}

impl<'a> WeightReader<'a> {
    /// Creates a reader at the root. Parameters become tensors of `dtype` on `device`, tracked on an autodiff device.
    pub fn new(state: &'a StateDict, device: &'a Device, dtype: DType) -> Self {
        Self { state, device, dtype, tracked: device.is_autodiff(), path: String::new() }
    }

    /// Creates a reader for a network that is never trained: on an autodiff device gradients pass through it only.
    pub fn frozen(state: &'a StateDict, device: &'a Device, dtype: DType) -> Self {
        Self { tracked: false, ..Self::new(state, device, dtype) }
    }

    /// The same reader one level down.
    pub fn at(&self, name: &str) -> Self {
        Self { path: self.join(name), ..*self }
    }

    /// The same reader for a part that computes in f32 at least, whatever the others do.
    pub fn wide(&self) -> Self {
        Self { dtype: statistics_dtype(self.dtype), path: self.path.clone(), ..*self }
    }

    fn join(&self, name: &str) -> String {
        if self.path.is_empty() { name.to_owned() } else { format!("{}.{name}", self.path) }
    }

    /// Whether the state dict has `name` below this path.
    pub fn has(&self, name: &str) -> bool {
        self.state.contains_key(&self.join(name))
    }

    /// The parameter `name` below this path.
    ///
    /// # Errors
    /// If it is missing or does not have `D` dimensions.
    pub fn param<const D: usize>(&self, name: &str) -> Result<Param<Tensor<D>>, ModelError> {
        let name = self.join(name);
        let host = self.state.get(&name).ok_or_else(|| ModelError::Missing(name.clone()))?;
        if host.shape.len() != D {
            return Err(ModelError::Rank { name, shape: host.shape.clone(), rank: D });
        }
        let data = TensorData::new(host.to_f32(), host.shape.clone());
        let tensor = Tensor::<D>::from_data(data, (self.device, self.dtype));
        let tensor = if self.tracked { tensor.require_grad() } else { tensor };
        Ok(Param::initialized(param_id(&name), tensor))
    }

    /// The parameter `name` below this path, which must have `shape`.
    ///
    /// # Errors
    /// If it is missing or of another shape.
    pub fn shaped<const D: usize>(&self, name: &str, shape: [usize; D]) -> Result<Param<Tensor<D>>, ModelError> {
        let param = self.param(name)?;
        let found: [usize; D] = param.dims();
        if found == shape {
            return Ok(param);
        }
        Err(ModelError::Shape { name: self.join(name), shapes: format!("{found:?}, must be {shape:?}") })
    }
}

/// Gives a name the same id in every process, so that saved optimizer state finds its parameter again.
///
/// The few hundred names of a model do not collide in 64 bits.
pub fn param_id(name: &str) -> ParamId {
    ParamId::from(fnv1a(name.bytes()))
}

/// 64-bit FNV-1a. Unlike the standard library's hash it is the same in every version.
pub fn fnv1a(bytes: impl Iterator<Item = u8>) -> u64 {
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

/// Reads a tensor back to the host as f32, with a single copy.
///
/// # Errors
/// If the device fails.
pub fn read_back<const D: usize>(tensor: Tensor<D>) -> Result<HostTensor, ModelError> {
    let data = tensor.try_into_data_as::<f32>().map_err(|error| ModelError::Device(error.to_string()))?;
    let shape = data.shape().to_vec();
    if cfg!(target_endian = "big") {
        let values = data.try_into_vec().map_err(|error| ModelError::Device(format!("{error:?}")))?;
        return Ok(HostTensor::from_f32(shape, &values));
    }
    let bytes = data.into_bytes().try_into_vec().unwrap_or_else(|bytes| bytes.to_vec());
    Ok(HostTensor { dtype: Dtype::F32, shape, bytes })
}

/// Reads every float parameter of `module` back to the host as f32, by name.
///
/// # Errors
/// If the device fails.
pub fn state_dict<M: Module>(module: &M) -> Result<StateDict, ModelError> {
    struct Reader(StateDict, Option<ModelError>);
    impl ParameterVisitor for Reader {
        fn parameter<const D: usize>(&mut self, name: &str, _id: ParamId, value: Tensor<D>) {
            match read_back(value) {
                Ok(tensor) => drop(self.0.insert(name.to_owned(), tensor)),
                Err(error) => self.1 = Some(error),
            }
        }
    }
    let mut reader = Reader(StateDict::new(), None);
    visit_parameters(module, &mut reader);
    match reader.1 {
        Some(error) => Err(error),
        None => Ok(reader.0),
    }
}

/// Visits each float parameter of a module once; see [`visit_parameters`].
pub trait ParameterVisitor {
    /// `value` is without autodiff.
    fn parameter<const D: usize>(&mut self, name: &str, id: ParamId, value: Tensor<D>);
}

/// Whether a module is inside an enum, whose variants are not part of a parameter's name.
pub(crate) fn is_enum(container: &str) -> bool {
    container.starts_with("Enum:")
}

/// Calls `visitor` with every float parameter of `module`, in the module's order.
pub fn visit_parameters<M: Module, V: ParameterVisitor>(module: &M, visitor: &mut V) {
    struct Walk<'a, V> {
        path: Vec<String>,
        visitor: &'a mut V,
    }
    impl<V: ParameterVisitor> ModuleVisitor for Walk<'_, V> {
        fn enter_module(&mut self, name: &str, container: &str) {
            if !is_enum(container) {
                self.path.push(name.to_owned());
            }
        }
        fn exit_module(&mut self, _name: &str, container: &str) {
            if !is_enum(container) {
                self.path.pop();
            }
        }
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            self.visitor.parameter(&self.path.join("."), param.id, param.val().without_autodiff());
        }
    }
    module.visit(&mut Walk { path: Vec::new(), visitor });
}
