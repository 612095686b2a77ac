//! The Fréchet distance of two sets of features (FID: Heusel et al. 2017, arXiv 1706.08500), by their means and covariances,
//! all in double precision on the CPU.

use std::path::Path;

use burn::tensor::{DType, Device, Tensor, TensorData};
use checkpoints::{Npz, NpzError, write_npz};
use cpu_kernels::symmetric::{cholesky, eigenvalues};

/// Sums over the features of images, from which their statistics follow.
#[derive(Debug, Clone)]
pub struct FeatureSums {
    images: usize,
    /// `[1, D]`.
    sum: Tensor<2>,
    /// `[D, D]`, the sum of each image's products of two features.
    products: Tensor<2>,
}

/// Mean and covariance of features.
#[derive(Debug, Clone, PartialEq)]
pub struct Statistics {
    /// `[D]`.
    pub mean: Vec<f64>,
    /// `[D, D]`, with one degree of freedom less than images.
    pub covariance: Vec<f64>,
}

fn matrix(values: Vec<f64>, shape: [usize; 2]) -> Tensor<2> {
    Tensor::from_data(TensorData::new(values, shape), (&Device::flex(), DType::F64))
}

fn values(matrix: Tensor<2>) -> Result<Vec<f64>, String> {
    matrix.try_into_vec_as::<f64>().map_err(|error| error.to_string())
}

impl FeatureSums {
    /// Sums of no images, with `width` features each.
    pub fn new(width: usize) -> Self {
        let zeros = |rows: usize| Tensor::zeros([rows, width], (&Device::flex(), DType::F64));
        Self { images: 0, sum: zeros(1), products: zeros(width) }
    }

    /// Adds features `[N, D]`, row by row.
    pub fn add(&mut self, features: &[f32]) {
        let [_, width] = self.sum.dims();
        let images = features.len() / width;
        let features = matrix(features.iter().copied().map(f64::from).collect(), [images, width]);
        self.images += images;
        self.sum = self.sum.clone() + features.clone().sum_dim(0);
        self.products = self.products.clone() + features.clone().transpose().matmul(features);
    }

    /// Returns mean and covariance; the covariance of a single image is 0.
    ///
    /// # Errors
    /// What the device says.
    pub fn statistics(&self) -> Result<Statistics, String> {
        let n = self.images as f64;
        let mean = self.sum.clone() / n;
        let centred = self.products.clone() - mean.clone().transpose().matmul(mean.clone()) * n;
        Ok(Statistics { mean: values(mean)?, covariance: values(centred / (n - 1.0).max(1.0))? })
    }

    /// Writes the sums into a file, from which [`read`](Self::read) takes them exactly.
    ///
    /// # Errors
    /// The disk.
    pub fn write(&self, path: &Path) -> Result<(), NpzError> {
        let broken = |reason: String| NpzError::NotNpz { path: path.to_owned(), reason };
        let [_, width] = self.sum.dims();
        let [sum, products] = [&self.sum, &self.products].map(|matrix| values(matrix.clone()));
        let (sum, products) = (sum.map_err(broken)?, products.map_err(broken)?);
        let images = [self.images as f64];
        write_npz(path, &[("images", &[1], &images), ("sum", &[width], &sum), ("products", &[width, width], &products)])
    }

    /// Reads what [`write`](Self::write) has written.
    ///
    /// # Errors
    /// The file is not there, or is damaged.
    pub fn read(path: &Path, width: usize) -> Result<Self, NpzError> {
        let mut npz = Npz::open(path)?;
        Ok(Self {
            images: npz.floats("images", &[1])?.first().map_or(0, |images| *images as usize),
            sum: matrix(npz.floats("sum", &[width])?, [1, width]),
            products: matrix(npz.floats("products", &[width, width])?, [width, width]),
        })
    }
}

impl Statistics {
    /// Reads `mu` and `sigma` of pytorch-fid's statistics, which ADM's reference batches have too.
    ///
    /// # Errors
    /// They are not there, are those of another network, or are no numbers.
    pub fn read(npz: &mut Npz, width: usize) -> Result<Self, NpzError> {
        Ok(Self { mean: npz.floats("mu", &[width])?, covariance: npz.floats("sigma", &[width, width])? })
    }

    /// Writes `mu` and `sigma` as pytorch-fid does.
    ///
    /// # Errors
    /// The disk.
    pub fn write(&self, path: &Path) -> Result<(), NpzError> {
        let width = self.mean.len();
        write_npz(path, &[("mu", &[width], &self.mean), ("sigma", &[width, width], &self.covariance)])
    }
}

/// Returns `|m - m'|^2 + tr(S) + tr(S') - 2 tr((S S')^(1/2))`.
///
/// With `S = L L^T` the trace of the root is the sum of the roots of the eigenvalues of `L^T S' L`, which is symmetric: no
/// root of a matrix without one is taken. `None` if the covariances are not finite.
///
/// # Errors
/// What the device says.
pub fn frechet_distance(a: &Statistics, b: &Statistics) -> Result<Option<f64>, String> {
    let width = a.mean.len();
    let means: f64 = a.mean.iter().zip(&b.mean).map(|(a, b)| (a - b).powi(2)).sum();
    let trace = |matrix: &[f64]| matrix.iter().step_by(width + 1).sum::<f64>();
    let Some(factor) = factor(&a.covariance, width) else { return Ok(None) };
    let factor = matrix(factor, [width, width]);
    let product = factor.clone().transpose().matmul(matrix(b.covariance.clone(), [width, width])).matmul(factor);
    let product = values((product.clone() + product.transpose()) * 0.5)?;
    if !product.iter().all(|value| value.is_finite()) {
        return Ok(None);
    }
    // Rounding can make an eigenvalue of 0 negative.
    let root: f64 = eigenvalues(&product, width).into_iter().map(|value| value.max(0.0).sqrt()).sum();
    Ok(Some(means + trace(&a.covariance) + trace(&b.covariance) - 2.0 * root))
}

/// The factor L of a covariance. Fewer images than features leave it singular: then the least that is needed is added to the
/// variances.
fn factor(covariance: &[f64], width: usize) -> Option<Vec<f64>> {
    let largest = covariance.iter().step_by(width + 1).copied().fold(0.0, f64::max);
    if !(covariance.iter().all(|value| value.is_finite())) {
        return None;
    }
    let shifts = (-15..=-6).map(|exponent| largest * 10f64.powi(exponent));
    // All images alike.
    let last = std::iter::once(f64::MIN_POSITIVE.sqrt());
    std::iter::once(0.0).chain(shifts).chain(last).find_map(|shift| cholesky(covariance, width, shift))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::models::inception::tests::{expected, images, weights};
    use crate::models::inception::{FidPackage, Inception, WIDTH};
    use crate::models::lpips::tests::formula;

    fn assert_near(found: f64, expected: f64, relative: f64) {
        assert!((found - expected).abs() <= relative * expected.abs(), "{found} {expected}");
    }

    /// The two sets of the fixture: 500 vectors of 24 values.
    fn sums(name: &str, scale: f64, micro: usize) -> FeatureSums {
        let (vectors, mixing) =
            (formula(&format!("set.{name}"), 500 * 24), formula(&format!("set.{name}.mixing"), 24 * 24));
        let mean = formula(&format!("set.{name}.mean"), 24);
        let value = |row: &[f64], column: usize| {
            let mixed: f64 = row.iter().zip(mixing.iter().skip(column).step_by(24)).map(|(a, b)| a * b).sum();
            (scale * mixed + 0.3 * mean[column]) as f32
        };
        let values: Vec<f32> =
            vectors.chunks(24).flat_map(|row| (0..24).map(move |column| value(row, column))).collect();
        let mut sums = FeatureSums::new(24);
        values.chunks(24 * micro).for_each(|part| sums.add(part));
        sums
    }

    #[test]
    fn statistics_and_distance_are_those_of_the_packages() {
        let [a, b] = [("a", 1.0, 7), ("b", 0.7, 500)].map(|(name, scale, micro)| {
            let found = sums(name, scale, micro).statistics().unwrap();
            for (values, kind) in [(&found.mean, "mu"), (&found.covariance, "sigma")] {
                for (found, expected) in values.iter().zip(expected(&format!("set.{name}.{kind}"))) {
                    assert!((found - f64::from(expected)).abs() < 1e-5, "{kind}: {found} {expected}");
                }
            }
            found
        });
        let distance = frechet_distance(&a, &b).unwrap().unwrap();
        assert_near(distance, expected("set.fid")[0].into(), 1e-5);
        assert_near(frechet_distance(&b, &a).unwrap().unwrap(), distance, 1e-9);
        assert!(frechet_distance(&a, &a).unwrap().unwrap().abs() < 1e-9);
        let broken = Statistics { mean: a.mean.clone(), covariance: vec![f64::NAN; 24 * 24] };
        assert_eq!(frechet_distance(&broken, &a).unwrap(), None);
    }

    #[test]
    fn images_that_are_all_alike_have_a_distance() {
        let alike = |value: f64| Statistics { mean: vec![value; 3], covariance: vec![0.0; 9] };
        assert_near(frechet_distance(&alike(1.0), &alike(3.0)).unwrap().unwrap(), 12.0, 1e-12);
    }

    #[test]
    fn sums_go_on_from_a_file_as_if_they_had_never_stopped() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("sums.npz");
        let rows = |seed: f32| (0..4 * 24).map(|at| (seed * at as f32).cos()).collect::<Vec<f32>>();
        let mut whole = FeatureSums::new(24);
        whole.add(&rows(0.3));
        whole.write(&path).unwrap();
        let mut resumed = FeatureSums::read(&path, 24).unwrap();
        [&mut whole, &mut resumed].into_iter().for_each(|sums| sums.add(&rows(0.7)));
        assert_eq!(whole.statistics().unwrap(), resumed.statistics().unwrap());
        assert!(FeatureSums::read(&path, 23).is_err());
        let statistics = whole.statistics().unwrap();
        statistics.write(&path).unwrap();
        assert_eq!(Statistics::read(&mut Npz::open(&path).unwrap(), 24).unwrap(), statistics);
    }

    /// The whole way of the packages, on their own network with random weights: 12 images against 12 others.
    #[test]
    fn the_figures_of_the_network_are_those_of_the_packages() {
        let (state, device) = (weights(), Device::flex());
        for (package, name) in [(FidPackage::TorchFidelity, "torch-fidelity"), (FidPackage::PytorchFid, "pytorch-fid")]
        {
            let network = Inception::read(&state, &device, package).unwrap();
            let output = network.forward(images("small", [24, 40, 48]));
            let features = output.features.try_into_vec_as::<f32>().unwrap();
            let halves = features.split_at(12 * WIDTH);
            // Of all features the covariances are singular, and then the packages' own figures are not to be trusted.
            let some = |half: &[f32]| {
                let mut sums = FeatureSums::new(WIDTH / 256);
                sums.add(&half.iter().copied().step_by(256).collect::<Vec<f32>>());
                sums.statistics().unwrap()
            };
            let distance = frechet_distance(&some(halves.0), &some(halves.1)).unwrap().unwrap();
            assert_near(distance, expected(&format!("fid.{name}"))[0].into(), 1e-3);
            if package == FidPackage::PytorchFid {
                continue;
            }
            let all = |half: &[f32]| {
                let mut sums = FeatureSums::new(WIDTH);
                sums.add(half);
                sums.statistics().unwrap()
            };
            let distance = frechet_distance(&all(halves.0), &all(halves.1)).unwrap().unwrap();
            assert_near(distance, expected("fid.all")[0].into(), 1e-3);
            let mut classes = super::super::inception_score::ClassSums::new(2);
            let logits = output.logits.try_into_vec_as::<f32>().unwrap();
            (0..).zip(logits.chunks(1008)).for_each(|(position, logits)| classes.add(position, logits));
            let [mean, deviation] = expected("isc")[..] else { panic!() };
            let score = classes.score().unwrap();
            assert_near(score.mean, mean.into(), 1e-3);
            assert_near(score.deviation, deviation.into(), 1e-2);
        }
    }
}
