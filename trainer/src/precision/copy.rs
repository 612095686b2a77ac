//! The copy of a model that computes in half precision.

use burn::module::{Module, ModuleMapper, Param};
use burn::tensor::{DType, Tensor};

/// Modules whose parameters are not converted: norms, which compute in f32, and the codebook.
const KEPT: [&str; 4] = ["Struct:GroupNorm", "Struct:LayerNorm", "Struct:BatchNorm", "Enum:Quantizer"];

/// Returns `model` with parameters of `dtype`. They have the ids of the model's own and are trained where those are;
/// without autodiff if the model is. Parameters that stay in f32 share their memory with the model.
pub fn compute_copy<M: Module>(model: &M, dtype: DType) -> M {
    model.clone().map(&mut Cast { dtype, kept: 0 })
}

struct Cast {
    dtype: DType,
    /// Depth below the outermost module of [`KEPT`]; 0 outside of one.
    kept: usize,
}

impl ModuleMapper for Cast {
    fn enter_module(&mut self, _name: &str, container: &str) {
        if self.kept > 0 || KEPT.contains(&container) {
            self.kept += 1;
        }
    }

    fn exit_module(&mut self, _name: &str, _container: &str) {
        self.kept = self.kept.saturating_sub(1);
    }

    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let (id, value, mapper) = param.consume();
        if self.kept > 0 || value.dtype() == self.dtype {
            return Param::from_mapped_value(id, value, mapper);
        }
        let (tracked, learns) = (value.is_autodiff(), value.is_require_grad());
        // Detached from the master: otherwise the graph would contain the cast, and end at the master instead of here.
        let cast = value.without_autodiff().cast(self.dtype);
        let cast = if tracked { cast.autodiff() } else { cast };
        Param::from_mapped_value(id, if learns { cast.require_grad() } else { cast }, mapper)
    }
}

#[cfg(test)]
mod tests {
    use burn::module::{ModuleVisitor, ParamId};
    use burn::tensor::Device;
    use checkpoints::{Architecture, QuantizerKind};

    use super::*;
    use crate::models::VqGan;
    use crate::models::initialize::random_weights;
    use crate::models::tests::tiny_architecture;
    use crate::models::weights::param_id;
    use crate::optim::{Trainable, freeze};

    #[derive(Default)]
    struct Seen(Vec<(ParamId, DType, bool)>);

    impl ModuleVisitor for Seen {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            self.0.push((param.id, param.val().dtype(), param.val().is_require_grad()));
        }
    }

    #[test]
    fn a_copy_has_the_masters_ids_learns_what_it_learns_and_keeps_norms_and_codes_in_f32() {
        let tiny = tiny_architecture();
        let mut gumbel = Architecture { code_dim: tiny.latent_channels, ..tiny.clone() };
        gumbel.quantizer.kind = QuantizerKind::Gumbel;
        [tiny, gumbel].iter().for_each(check_copy);
    }

    fn check_copy(architecture: &Architecture) {
        let weights = random_weights(architecture, 1);
        let model = VqGan::new(architecture, &weights, &Device::flex().autodiff(), DType::F32).unwrap();
        let names: Vec<&str> = weights.keys().map(String::as_str).collect();
        let model = freeze(model, &Trainable::new(&["decoder".to_owned()], &names).unwrap());
        let (mut of_master, mut of_copy) = (Seen::default(), Seen::default());
        model.visit(&mut of_master);
        compute_copy(&model, DType::BF16).visit(&mut of_copy);
        assert_eq!(of_master.0.len(), names.len());
        let ids = |seen: &Seen| seen.0.iter().map(|(id, _, learns)| (*id, *learns)).collect::<Vec<_>>();
        assert_eq!(ids(&of_copy), ids(&of_master));
        assert!(of_copy.0.iter().any(|(_, _, learns)| *learns) && !of_copy.0.iter().all(|(_, _, learns)| *learns));
        let dtype_of = |name: &str| of_copy.0.iter().find(|(id, ..)| *id == param_id(name)).unwrap().1;
        for name in names {
            let wide = name.contains("norm") || name.starts_with("quantize.");
            assert_eq!(dtype_of(name), if wide { DType::F32 } else { DType::BF16 }, "{name}");
        }
    }
}
