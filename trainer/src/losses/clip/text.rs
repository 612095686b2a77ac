//! The distance of an image from texts: the squared great-circle distance of their CLIP embeddings (VQGAN-CLIP, Crowson
//! et al. 2022, arXiv 2204.08583).

use std::str::FromStr;

use burn::tensor::{Tensor, TensorData};
use thiserror::Error;

use super::embedding::{length, unit};
use crate::losses::loss::{Sees, Surroundings};
use crate::losses::table::{LossKeys, LossTable, loss_table};
use crate::problem::{Problem, problem};

const PROMPTS: &str = "losses.clip_text.prompts";

loss_table! {
    /// `[losses.clip_text]`: pulls the reconstruction's CLIP embedding towards that of a text.
    clip_text: ClipTextConfig, weight = 0.0,
    /// Texts for all images, each with an optional weight after a colon, such as `a photo:0.5`; a negative weight
    /// pushes away. The default is each image's own caption.
    prompts: Vec<String> = Vec::new(),
}

impl LossTable for ClipTextConfig {
    fn sees(&self) -> Sees {
        Sees::Clip
    }

    fn needs_captions(&self) -> bool {
        self.prompts.is_empty()
    }

    fn check(&self, _around: &Surroundings) -> Result<(), Problem> {
        if !self.is_on() {
            return Ok(());
        }
        if self.prompts.iter().any(|prompt| prompt.trim().is_empty()) {
            return problem(PROMPTS, "has an empty text; without prompts, each image's own caption is used");
        }
        self.prompts().map(drop)
    }
}

impl ClipTextConfig {
    /// Reads `prompts`.
    ///
    /// # Errors
    /// The first one that has no text or no usable weight.
    pub fn prompts(&self) -> Result<Vec<Prompt>, Problem> {
        let wrong = |error: PromptError| Problem { key: PROMPTS, message: format!("is wrong: {error}") };
        self.prompts.iter().map(|text| text.parse().map_err(wrong)).collect()
    }
}

/// Points of the unit sphere that are nearer than this to each other, or to each other's opposite, count as this near.
const NEAREST: f64 = 1e-6;

/// A text to move towards.
#[derive(Debug, Clone, PartialEq)]
pub struct Prompt {
    /// The text that CLIP reads.
    pub text: String,
    /// Its weight; never 0, and below 0 to move away from it.
    pub weight: f64,
}

/// Why a prompt cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum PromptError {
    /// There is nothing before the weight.
    #[error("prompt `{0}` has no text")]
    NoText(String),
    /// The weight is not a finite number.
    #[error("prompt `{prompt}`: the weight `{weight}` is not a finite number (if it is a part of the text, add `:1`)")]
    Weight {
        /// The whole prompt.
        prompt: String,
        /// The text after the last colon.
        weight: String,
    },
    /// The weight is 0.
    #[error("prompt `{0}` has the weight 0 and no effect: remove it")]
    Zero(String),
}

impl FromStr for Prompt {
    type Err = PromptError;

    /// Reads `text` or `text:weight`; without a weight it is 1.
    ///
    /// The part after the last colon, without spaces around it, is a weight if it is empty, or a single word that looks
    /// like a number: it begins with a digit, a sign or a point, or is `nan`, `inf` or `infinity`. Then it must be a
    /// finite number other than 0. Otherwise it belongs to the text: `ratio 3: a photo`, `style:cubist`. A text that
    /// itself ends like a weight needs one: `a clock at 12:30:1`.
    ///
    /// # Errors
    /// If there is no text, or the weight is not valid.
    fn from_str(prompt: &str) -> Result<Self, PromptError> {
        let (text, weight) = match prompt.rsplit_once(':') {
            Some((text, weight)) if is_meant_as_weight(weight.trim()) => (text, Some(weight.trim())),
            _ => (prompt, None),
        };
        let text = text.trim();
        if text.is_empty() {
            return Err(PromptError::NoText(prompt.to_owned()));
        }
        let refused = |weight: &str| PromptError::Weight { prompt: prompt.to_owned(), weight: weight.to_owned() };
        let weight = match weight {
            None => 1.0,
            Some(word) => {
                let value: f64 = word.parse().map_err(|_| refused(word))?;
                if !value.is_finite() {
                    return Err(refused(word));
                }
                value
            }
        };
        if weight == 0.0 {
            return Err(PromptError::Zero(prompt.to_owned()));
        }
        Ok(Self { text: text.to_owned(), weight })
    }
}

fn is_meant_as_weight(word: &str) -> bool {
    let named = ["nan", "inf", "infinity"].iter().any(|name| word.eq_ignore_ascii_case(name));
    // U+2212 is the minus sign of typesetting. It is no valid sign here, but must not silently become text.
    let like_a_number = word.starts_with(|c: char| c.is_ascii_digit() || matches!(c, '+' | '-' | '\u{2212}' | '.'));
    !word.contains(char::is_whitespace) && (word.is_empty() || named || like_a_number)
}

/// Returns the sum over the prompts of `weight * 2 asin(|u - v| / 2)^2`, `u` and `v` at unit length, for
/// `reconstruction` `[V, E]` and `prompts` `[P, E]`: `[V]`. `weights` has one number per prompt, possibly below 0.
pub fn per_view(reconstruction: Tensor<2>, prompts: Tensor<2>, weights: &[f64]) -> Tensor<1> {
    let ([v, e], [p, _]) = (reconstruction.dims(), prompts.dims());
    let of_all_pairs = |x: Tensor<3>| x.expand([v, p, e]).reshape([v * p, e]);
    let images = of_all_pairs(reconstruction.unsqueeze_dim(1));
    let texts = of_all_pairs(prompts.unsqueeze_dim(0));
    let distances = per_view_paired(images, texts).reshape([v, p]);
    let place = (&distances.device(), distances.dtype());
    let weights = Tensor::<2>::from_data(TensorData::new(weights.to_vec(), [1, p]), place);
    (distances * weights).sum_dim(1).flatten(0, 1)
}

/// Returns `2 asin(|u - v| / 2)^2` of each row of `reconstruction` and the same row of `texts`, its caption: `[V, E]`
/// twice to `[V]`. This is half the square of the angle, so in 0..4.94.
///
/// It is computed as the arc tangent of `|u - v|` and `|u + v|`, which is exact where the arc sine's slope is infinite.
/// The gradient is finite everywhere. It is zero at equal embeddings, where the value is smallest, and at opposite
/// ones, where it has no direction; near these its length is that of the angle.
pub fn per_view_paired(reconstruction: Tensor<2>, texts: Tensor<2>) -> Tensor<1> {
    let image = unit(reconstruction);
    let text = unit(texts).cast(image.dtype());
    let apart = length(image.clone() - text.clone(), NEAREST);
    let together = length(image + text, NEAREST);
    (apart.atan2(together).square() * 2.0).flatten(0, 1)
}

#[cfg(test)]
mod tests {
    use std::f64::consts::PI;

    use burn::tensor::DType;

    use super::super::fixture::{Expected, assert_finite_differences, assert_near, read, rows, wave};
    use super::*;

    fn parsed(prompt: &str) -> (String, f64) {
        let prompt: Prompt = prompt.parse().unwrap();
        (prompt.text, prompt.weight)
    }

    #[test]
    fn a_trailing_number_is_the_weight() {
        for (prompt, text, weight) in [
            ("a red barn", "a red barn", 1.0),
            ("a red barn:0.5", "a red barn", 0.5),
            ("a red barn:-2", "a red barn", -2.0),
            ("blurry : -.25 ", "blurry", -0.25),
            ("a:b:1e-1", "a:b", 0.1),
            ("style: cubist:+3", "style: cubist", 3.0),
            ("ratio 3: a photo", "ratio 3: a photo", 1.0),
            ("ratio: 3 photos", "ratio: 3 photos", 1.0),
            ("style:cubist", "style:cubist", 1.0),
            ("a clock at 12:30:1", "a clock at 12:30", 1.0),
            ("Title::1", "Title:", 1.0),
            ("une église: 0.5", "une église", 0.5),
        ] {
            assert_eq!(parsed(prompt), (text.to_owned(), weight), "{prompt}");
        }
    }

    #[test]
    fn a_weight_that_is_none_is_refused_in_one_line() {
        for (prompt, part) in [
            ("barn:", "the weight `` is not a finite number"),
            ("barn: ", "the weight `` is not"),
            ("barn:nan", "the weight `nan` is not"),
            ("barn:-inf", "the weight `-inf` is not"),
            ("barn:1e999", "the weight `1e999` is not"),
            ("barn:3d", "the weight `3d` is not"),
            ("barn:0,5", "the weight `0,5` is not"),
            ("barn:\u{2212}1", "the weight `\u{2212}1` is not"),
            ("barn:0", "has the weight 0"),
            ("barn:-0.0", "has the weight 0"),
            ("", "has no text"),
            (" :0.5", "has no text"),
        ] {
            let error = prompt.parse::<Prompt>().unwrap_err().to_string();
            assert!(error.contains(part) && error.contains(&format!("`{prompt}`")), "{error}");
            assert!(!error.contains('\n'));
        }
    }

    #[test]
    fn the_value_is_half_the_square_of_the_angle() {
        let texts = rows(&[&[1.0, 0.0], &[0.0, 3.0], &[1.0, 1.0], &[-1.0, 0.0]]);
        let images = rows(&[&[0.0, 2.0], &[0.0, 1.0], &[1.0, 0.0], &[4.0, 0.0]]);
        let found = read(per_view_paired(images, texts));
        let half_square = |angle: f64| angle * angle / 2.0;
        // The guard makes the angle of equal embeddings 1e-6, and reduces that of opposite ones by as much.
        assert_near(&found, &[half_square(PI / 2.0), 0.0, half_square(PI / 4.0), half_square(PI)], 4e-6);
        assert_near(&found[2..3], &[half_square(PI / 4.0)], 1e-12);
    }

    #[test]
    fn value_and_gradient_are_those_of_vqgan_clip() {
        let expected = Expected::open();
        let [prompts, images] = ["original", "reconstruction"].map(|name| expected.rows(name, 4));
        let weights = expected.read("text.weights");
        let leaf = images.autodiff().require_grad();
        let value = per_view(leaf.clone(), prompts.autodiff(), &weights);
        assert_near(&read(value.clone()), &expected.read("text.value"), 1e-12);
        let gradient = leaf.grad_remove(&mut value.sum().backward()).unwrap();
        assert_near(&read(gradient), &expected.read("text.gradient"), 1e-12);
    }

    #[test]
    fn prompts_add_up_by_their_weights() {
        let (images, prompts) = (wave(3, 4, 0.2), wave(2, 4, 1.5));
        let alone = |row: usize| {
            let text = prompts.clone().narrow(0, row, 1).expand([3, 4]);
            read(per_view_paired(images.clone(), text))
        };
        let expected: Vec<f64> = alone(0).iter().zip(alone(1)).map(|(a, b)| 0.5 * a - 2.0 * b).collect();
        assert_near(&read(per_view(images.clone(), prompts.clone(), &[0.5, -2.0])), &expected, 1e-12);
    }

    #[test]
    fn the_gradient_is_that_of_finite_differences() {
        let texts = wave(3, 5, 0.3);
        let loss = |x| per_view_paired(x, texts.clone());
        assert_finite_differences(wave(3, 5, 1.1), 1e-6, 1e-8, loss);
        assert_finite_differences(wave(3, 5, 1.1), 1e-6, 1e-8, |x| per_view(x, texts.clone(), &[1.0, -0.5, 2.0]));
        // Near equal and near opposite embeddings.
        for distance in [1e-2, 1e-4] {
            let nudge = wave(3, 5, 2.0) * distance;
            assert_finite_differences(texts.clone() * 2.0 + nudge.clone(), 1e-7, 1e-6, loss);
            assert_finite_differences(texts.clone() * -2.0 + nudge, 1e-7, 1e-3, loss);
        }
    }

    #[test]
    fn at_both_ends_the_gradient_is_zero() {
        for dtype in [DType::F64, DType::F32, DType::F16, DType::BF16] {
            let texts = rows(&[&[0.6, 0.8], &[0.6, 0.8], &[1.0, 0.0]]).cast(dtype);
            let leaf = rows(&[&[0.6, 0.8], &[-0.6, -0.8], &[0.0, 0.0]]).cast(dtype).autodiff().require_grad();
            let value = per_view_paired(leaf.clone(), texts.autodiff());
            assert_eq!(value.dtype(), if dtype == DType::F64 { dtype } else { DType::F32 });
            let mut gradients = value.sum().backward();
            let gradient = read(leaf.grad_remove(&mut gradients).unwrap().cast(DType::F64));
            assert!(gradient.iter().all(|g| g.is_finite()), "{dtype:?}: {gradient:?}");
            assert!(gradient[..4].iter().all(|g| g.abs() < 1e-5), "{dtype:?}: {gradient:?}");
        }
    }
}
