//! Which parameters are trained: globs over their names, as in `model.train`.

use std::collections::BTreeSet;

use burn::module::{Module, ModuleMapper, Param};
use burn::tensor::Tensor;
use globset::{GlobBuilder, GlobMatcher};

use crate::models::weights::is_enum;
use crate::problem::nearest;

/// Why patterns do not select the trained parameters.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum FreezingError {
    /// The pattern is not a glob.
    #[error("the pattern \"{pattern}\" cannot be read: {reason}")]
    Malformed {
        /// The pattern.
        pattern: String,
        /// What is wrong with it.
        reason: String,
    },
    /// No parameter and no module matches the pattern.
    #[error("the pattern \"{pattern}\" matches nothing{}", did_you_mean(nearest.as_deref()))]
    Unmatched {
        /// The pattern.
        pattern: String,
        /// The module or parameter whose name is nearest, if one is near enough.
        nearest: Option<String>,
    },
}

fn did_you_mean(nearest: Option<&str>) -> String {
    nearest.map(|name| format!(", did you mean \"{name}\"?")).unwrap_or_default()
}

/// Tells by a parameter's name whether it is trained.
#[derive(Debug, Clone)]
pub struct Trainable(Vec<GlobMatcher>);

impl Trainable {
    /// Selects the parameters that one of `patterns` matches, and everything below a matched module. `*` and `?` also
    /// match dots, `[01]` and `{q,k}` match one of their alternatives. `names` are all parameters of the model.
    ///
    /// # Errors
    /// If a pattern is not a glob or matches none of `names`.
    pub fn new(patterns: &[String], names: &[&str]) -> Result<Self, FreezingError> {
        let globs: Vec<GlobMatcher> = patterns.iter().map(|pattern| glob(pattern)).collect::<Result<_, _>>()?;
        let unmatched = globs.iter().find(|glob| !names.iter().any(|name| matches(glob, name)));
        match unmatched {
            Some(glob) => Err(FreezingError::Unmatched {
                pattern: glob.glob().to_string(),
                nearest: nearest_path(glob.glob().glob(), names),
            }),
            None => Ok(Self(globs)),
        }
    }

    /// Whether the parameter `name` is trained.
    pub fn is_trained(&self, name: &str) -> bool {
        self.0.iter().any(|glob| matches(glob, name))
    }
}

/// Checks that `pattern` is a glob.
///
/// # Errors
/// If it is not.
pub fn check_pattern(pattern: &str) -> Result<(), FreezingError> {
    glob(pattern).map(drop)
}

fn glob(pattern: &str) -> Result<GlobMatcher, FreezingError> {
    let malformed = |reason: String| FreezingError::Malformed { pattern: pattern.to_owned(), reason };
    if pattern.is_empty() {
        return Err(malformed("it is empty".into()));
    }
    let glob = GlobBuilder::new(pattern)
        .backslash_escape(true)
        .build()
        .map_err(|error| malformed(error.kind().to_string()))?;
    Ok(glob.compile_matcher())
}

fn matches(glob: &GlobMatcher, name: &str) -> bool {
    paths(name).any(|path| glob.is_match(path))
}

/// Returns the modules around a parameter, outermost first, and the parameter itself.
fn paths(name: &str) -> impl Iterator<Item = &str> {
    name.match_indices('.').map(|(at, _)| &name[..at]).chain([name])
}

fn nearest_path(pattern: &str, names: &[&str]) -> Option<String> {
    let all: BTreeSet<&str> = names.iter().flat_map(|name| paths(name)).collect();
    let all: Vec<&str> = all.into_iter().collect();
    nearest(pattern.trim_end_matches(['*', '.']), &all).map(str::to_owned)
}

/// Disables the gradient of every parameter of `model` that is not `trained`. The parameter keeps its id and its value,
/// which is not copied.
#[must_use]
pub fn freeze<M: Module>(model: M, trained: &Trainable) -> M {
    struct Freeze<'a> {
        path: Vec<String>,
        trained: &'a Trainable,
    }
    impl ModuleMapper for Freeze<'_> {
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
        fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
            match self.trained.is_trained(&self.path.join(".")) {
                true => param,
                false => param.set_require_grad(false),
            }
        }
    }
    model.map(&mut Freeze { path: Vec::new(), trained })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use burn::module::{ModuleVisitor, ParamId};
    use burn::tensor::{DType, Device, Gradients, TensorData};

    use super::*;
    use crate::models::VqGan;
    use crate::models::initialize::random_weights;
    use crate::models::quantizer::Terms;
    use crate::models::tests::tiny_architecture;
    use crate::models::weights::state_dict;

    fn trainable(patterns: &[&str]) -> Result<Trainable, FreezingError> {
        let patterns: Vec<String> = patterns.iter().map(|pattern| (*pattern).to_owned()).collect();
        let parameters = tiny_architecture().parameters();
        let names: Vec<&str> = parameters.iter().map(|(name, _)| name.as_str()).collect();
        Trainable::new(&patterns, &names)
    }

    /// Returns how many parameters are trained, and whether all their names begin with `prefix`.
    fn trained(patterns: &[&str], prefix: &str) -> (usize, bool) {
        let trainable = trainable(patterns).unwrap();
        let names: Vec<String> = tiny_architecture().parameters().into_iter().map(|(name, _)| name).collect();
        let trained: Vec<&String> = names.iter().filter(|name| trainable.is_trained(name)).collect();
        (trained.len(), trained.iter().all(|name| name.starts_with(prefix)))
    }

    #[test]
    fn a_pattern_matches_names_and_all_below_a_module() {
        let all = tiny_architecture().parameters().len();
        let of_decoder =
            tiny_architecture().parameters().iter().filter(|(name, _)| name.starts_with("decoder.")).count();
        assert_eq!(trained(&["*"], ""), (all, true));
        // Neither `post_quant_conv` nor, by `quantize`, `quant_conv`.
        assert_eq!(trained(&["decoder"], "decoder."), (of_decoder, true));
        assert_eq!(trained(&["decoder.*"], "decoder."), (of_decoder, true));
        assert_eq!(trained(&["quantize"], "quantize.embedding.weight"), (1, true));
        assert_eq!(trained(&["decoder.conv_out", "quantize"], ""), (3, true));
        assert_eq!(trained(&["decoder.conv_out.weight"], "decoder.conv_out.weight"), (1, true));
        assert_eq!(
            trained(&["decoder.up.?.block"], "decoder.up."),
            trained(&["decoder.up.[01].block.*"], "decoder.up.")
        );
        assert_eq!(trained(&["decoder.mid.*.{q,k}"], "decoder.mid.attn_1."), (4, true));
        assert_eq!(
            trained(&["*.bias"], "").0,
            tiny_architecture().parameters().iter().filter(|(n, _)| n.ends_with(".bias")).count()
        );
    }

    #[test]
    fn a_pattern_that_matches_nothing_is_named_with_the_nearest_module() {
        let error = |pattern| trainable(&["*", pattern]).unwrap_err().to_string();
        assert_eq!(error("encodr.*"), "the pattern \"encodr.*\" matches nothing, did you mean \"encoder\"?");
        let found = "the pattern \"decoder.up.7\" matches nothing, did you mean \"decoder.up.0\"?";
        assert_eq!(error("decoder.up.7"), found);
        assert_eq!(error("bottleneck of something"), "the pattern \"bottleneck of something\" matches nothing");
        // A part of a name is not a module.
        assert!(error("deco").contains("did you mean \"decoder\"?"));
    }

    #[test]
    fn a_pattern_that_is_no_glob_is_refused() {
        for (pattern, reason) in [("decoder.[up", "unclosed character class"), ("", "it is empty")] {
            let error = trainable(&[pattern]).unwrap_err().to_string();
            assert!(error.contains(&format!("\"{pattern}\" cannot be read: {reason}")), "{error}");
            assert_eq!(check_pattern(pattern).unwrap_err().to_string(), error);
        }
    }

    /// Returns, by name, the id and whether there is a gradient.
    fn gradients(model: &VqGan, gradients: &Gradients) -> BTreeMap<String, (ParamId, bool)> {
        struct Look<'a>(Vec<String>, &'a Gradients, BTreeMap<String, (ParamId, bool)>);
        impl ModuleVisitor for Look<'_> {
            fn enter_module(&mut self, name: &str, container: &str) {
                if !is_enum(container) {
                    self.0.push(name.to_owned());
                }
            }
            fn exit_module(&mut self, _name: &str, container: &str) {
                if !is_enum(container) {
                    self.0.pop();
                }
            }
            fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
                let has_gradient = param.val().grad(self.1).is_some();
                self.2.insert(self.0.join("."), (param.id, has_gradient));
            }
        }
        let mut look = Look(Vec::new(), gradients, BTreeMap::new());
        model.visit(&mut look);
        look.2
    }

    #[test]
    fn what_is_frozen_gets_no_gradient_and_what_is_trained_does() {
        let architecture = tiny_architecture();
        let device = Device::flex().autodiff();
        let whole = VqGan::new(&architecture, &random_weights(&architecture, 7), &device, DType::F32).unwrap();
        let backward = |model: &VqGan| {
            let pixels: Vec<f32> = (0..2 * 3 * 8 * 8).map(|i| (i as f32 * 0.37).sin()).collect();
            let images = Tensor::from_data(TensorData::new(pixels, [2, 3, 8, 8]), (&device, DType::F32));
            let (reconstruction, quantized) = model.reconstruct(images);
            let Terms::Nearest(terms) = quantized.terms else { panic!("another quantizer") };
            let loss = reconstruction.square().mean() + terms.codebook.mean() + terms.commitment.mean();
            gradients(model, &loss.backward())
        };
        let before = backward(&whole);
        assert_eq!(before.len(), architecture.parameters().len());
        assert!(before.values().all(|(_, has_gradient)| *has_gradient));

        for patterns in [&["decoder", "quantize"][..], &["encoder.down.1", "*.norm_out.weight"], &["quantize"]] {
            let trainable = trainable(patterns).unwrap();
            let frozen = freeze(whole.clone(), &trainable);
            assert_eq!(state_dict(&frozen).unwrap(), state_dict(&whole).unwrap());
            for (name, (id, has_gradient)) in backward(&frozen) {
                assert_eq!(id, before[&name].0, "{name}");
                assert_eq!(has_gradient, trainable.is_trained(&name), "{name} with {patterns:?}");
            }
        }
    }
}
