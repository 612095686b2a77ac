//! `train plan`: which precision, recomputation and micro-batch fit, and how fast they are, from a few measured steps.

use serde::Serialize;

use super::fit::{Fit, MOST};
use super::{Measurer, MemoryError, Variant};
use crate::config::{Compute, Recompute};

/// A row of the plan.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct PlanRow {
    /// `precision.compute`
    pub precision: Compute,
    /// `memory.recompute`
    pub recompute: Recompute,
    /// `batch.micro`
    pub micro: usize,
    /// Bytes.
    pub peak_memory: u64,
    /// Whether it was measured and not extrapolated.
    pub measured: bool,
    /// Bytes that an extrapolated peak may be off by; 0 where it was measured. It is a share of the peak, and on a GPU a page of
    /// its pools, since only a step shows whether it needs another one.
    pub margin: u64,
    /// Whether the peak with its margin is within the limit, if there is one.
    pub fits: Option<bool>,
    /// Images per second, as a multiple of the plan's first row.
    pub speed: f64,
}

impl PlanRow {
    /// Its values as they stand in a configuration.
    pub fn toml(&self) -> String {
        let Self { precision, recompute, micro, .. } = self;
        format!(
            "[batch]\nmicro = {micro}\n[precision]\ncompute = \"{precision}\"\n[memory]\nrecompute = \"{recompute}\"\n"
        )
    }
}

/// A whole plan.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Plan {
    /// The device, in words.
    pub device: String,
    /// `data.resolution`, in pixels.
    pub resolution: u32,
    /// Which networks had random weights in place of those on the Hub.
    pub random_weights: Vec<String>,
    /// Bytes.
    pub limit: Option<u64>,
    /// By precision, recomputation and micro-batch.
    pub rows: Vec<PlanRow>,
    /// The index of the fastest row that fits. Of rows that are as fast, it is the one that needs the least memory.
    pub best: Option<usize>,
    /// What could not be measured.
    pub notes: Vec<String>,
    /// How a GPU would differ, if the plan was measured on none.
    pub device_notes: &'static [&'static str],
}

/// How a GPU would differ from `device`, which is given by its description.
fn device_notes(device: &str) -> &'static [&'static str] {
    const CPU: [&str; 2] = [
        "Measured on the CPU, where the program itself and its images are in the figure.",
        "On a GPU they are not, but its allocator reserves more than is in use, and the driver and its libraries take their \
         own: plan there, with --device.",
    ];
    const SOFTWARE: [&str; 2] = [
        "Measured on a GPU that the CPU plays: memory is counted as on a GPU.",
        "But a GPU has other kernels, its driver and libraries take their own, and its speed is another: plan there, with \
         --device.",
    ];
    match device.split(',').next() {
        Some("cpu") => &CPU,
        Some("wgpu:cpu") => &SOFTWARE,
        _ => &[],
    }
}

/// Measures steps at micro-batch 1, 2 and 3 for each of `precisions` with each of `recomputes`, and extrapolates to larger ones.
///
/// # Errors
/// If processes or files cannot be had, if a signal came, or if nothing could be measured.
pub fn plan(
    measurer: Measurer,
    precisions: &[Compute],
    recomputes: &[Recompute],
    limit: Option<u64>,
) -> Result<Plan, MemoryError> {
    let config = &measurer.loaded.config;
    let (mut device, mut rows, mut notes) = (String::new(), Vec::new(), Vec::new());
    for &precision in precisions {
        for &recompute in recomputes {
            let variant = Variant { precision, recompute, ..Variant::of(config) };
            match measurer.peak(Variant { micro: 1, ..variant })? {
                Ok(one) => {
                    device.clone_from(&one.device);
                    rows.extend(rows_of(&Fit::measure(&one, variant, &measurer, &mut notes)?, precision, recompute));
                }
                Err(failure) => notes.push(failure.to_string()),
            }
        }
    }
    let base = rows.first().map(|row| row.speed).ok_or_else(|| MemoryError::Nothing(notes.join("; ")))?;
    for row in &mut rows {
        row.speed /= base;
        row.fits = limit.map(|limit| row.peak_memory + row.margin <= limit);
    }
    Ok(Plan {
        device_notes: device_notes(&device),
        device,
        resolution: config.data.resolution,
        random_weights: measurer.networks.random(),
        limit,
        best: best(&rows),
        rows,
        notes,
    })
}

/// The rows of one precision and recomputation, with the speed in images per second.
fn rows_of(fit: &Fit, precision: Compute, recompute: Recompute) -> Vec<PlanRow> {
    let row = |micro: usize| PlanRow {
        precision,
        recompute,
        micro,
        peak_memory: fit.peak(micro),
        measured: fit.was_measured(micro),
        margin: if fit.was_measured(micro) { 0 } else { fit.margin(micro) },
        fits: None,
        speed: fit.images_per_second(micro),
    };
    micros(fit.most).into_iter().map(row).collect()
}

/// 1, 2, 4 and so on up to the effective batch, which is the last.
fn micros(effective: usize) -> Vec<usize> {
    let most = effective.min(MOST);
    let powers = std::iter::successors(Some(1), |micro| Some(micro * 2)).take_while(|micro| *micro < most);
    powers.chain([most]).collect()
}

fn best(rows: &[PlanRow]) -> Option<usize> {
    // What differs by less is noise.
    const AS_FAST: f64 = 0.97;
    let fitting = || rows.iter().enumerate().filter(|(_, row)| row.fits != Some(false));
    let fastest = fitting().map(|(_, row)| row.speed).fold(0.0, f64::max);
    let as_fast = fitting().filter(|(_, row)| row.speed >= AS_FAST * fastest);
    as_fast.min_by_key(|(_, row)| row.peak_memory).map(|(index, _)| index)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::Measurement;
    use super::super::fit::tests::measured;
    use super::*;

    #[test]
    fn the_phase_that_grows_becomes_the_peak() {
        // A micro-batch of one takes 1 s, of two 1.5 s.
        let one = measured(json!({ "optimizer": 100, "backward": 70 }), 1.0);
        let two = measured(json!({ "optimizer": 100, "backward": 90 }), 2.0 / 1.5);
        let rows = rows_of(&Fit::new(8, &one, &two, None), Compute::Fp32, Recompute::None);
        let peaks: Vec<_> = rows.iter().map(|row| (row.micro, row.peak_memory, row.measured)).collect();
        assert_eq!(peaks, [(1, 100, true), (2, 100, true), (4, 130, false), (8, 210, false)]);
        let speeds: Vec<f64> = rows.iter().map(|row| row.speed).collect();
        assert!((speeds[3] - 8.0 / 4.5).abs() < 1e-12, "{speeds:?}");
    }

    #[test]
    fn what_comes_with_the_second_sample_once_and_for_all_does_not_grow() {
        let [one, two, three] = [10, 35, 45].map(|peak| measured(json!({ "backward": peak }), 1.0));
        let rows = rows_of(&Fit::new(8, &one, &two, Some(&three)), Compute::Fp32, Recompute::None);
        assert_eq!(rows.iter().map(|row| row.peak_memory).collect::<Vec<_>>(), [10, 35, 55, 95]);
    }

    #[test]
    fn no_more_speed_is_promised_than_was_seen() {
        let measured = |speed: f64| measured(json!({ "backward": 100 }), speed);
        let fit = Fit::new(8, &measured(1.0), &measured(2.5), None);
        let rows = rows_of(&fit, Compute::Fp32, Recompute::None);
        assert_eq!(rows.iter().map(|row| row.speed).collect::<Vec<_>>()[1..], [2.5, 2.5, 2.5]);
    }

    #[test]
    fn pools_that_reserve_more_than_is_in_use_are_the_peak() {
        let reserved =
            |peak: u64, page: u64| Measurement { peak_memory: peak, page, ..measured(json!({ "backward": 10 }), 1.0) };
        let three = Fit::new(8, &reserved(100, 20), &reserved(160, 30), Some(&reserved(190, 40)));
        assert_eq!([1, 2, 3, 4, 8].map(|micro| three.peak(micro)), [100, 160, 190, 240, 420]);
        assert_eq!([3, 4, 8].map(|micro| three.margin(micro)), [9, 12 + 50, 21 + 90]);
        let no_more = Fit::new(8, &reserved(100, 20), &reserved(160, 20), Some(&reserved(100, 20)));
        assert_eq!([3, 4].map(|micro| no_more.peak(micro)), [100, 120]);

        let fit = Fit::new(4, &reserved(100, 20), &reserved(140, 30), None);
        let rows = rows_of(&fit, Compute::Fp32, Recompute::None);
        let peaks: Vec<_> = rows.iter().map(|row| (row.peak_memory, row.margin)).collect();
        // Of what was not measured, 5 % and one page of the size that it takes there.
        assert_eq!(peaks, [(100, 0), (140, 0), (220, 11 + 50)]);
        assert_eq!([146, 147, 239, 240, 280].map(|limit| fit.largest(4, limit).unwrap()), [1, 2, 2, 2, 2]);
        assert_eq!(fit.largest(4, 281), Some(4));
    }

    #[test]
    fn the_best_is_the_fastest_that_fits_and_of_those_the_smallest() {
        let row = |micro: usize, peak_memory: u64, speed: f64| PlanRow {
            precision: Compute::Fp32,
            recompute: Recompute::None,
            micro,
            peak_memory,
            measured: false,
            margin: 0,
            fits: Some(peak_memory <= 100),
            speed,
        };
        assert_eq!(best(&[row(1, 50, 1.0), row(2, 70, 1.5), row(4, 90, 1.52), row(8, 200, 3.0)]), Some(1));
        assert_eq!(best(&[row(1, 101, 1.0)]), None);
    }

    #[test]
    fn figures_of_no_gpu_say_so() {
        assert!(device_notes("cpu, 2 threads (wgpu found 0 GPUs)")[0].starts_with("Measured on the CPU, "));
        assert!(device_notes("wgpu:cpu, llvmpipe")[0].starts_with("Measured on a GPU that the CPU plays"));
        assert!(device_notes("wgpu:0, Radeon").is_empty() && device_notes("cuda:0, H100").is_empty());
    }

    #[test]
    fn the_micro_batches_end_with_the_effective_batch() {
        assert_eq!(micros(1), [1]);
        assert_eq!(micros(8), [1, 2, 4, 8]);
        assert_eq!(micros(10), [1, 2, 4, 8, 10]);
    }
}
