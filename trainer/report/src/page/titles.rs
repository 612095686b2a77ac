//! Titles of charts.

/// The title of a metric by its tag. No two metrics of a page have the same one; it names the unit where the values beside
/// the axis do not.
pub(super) fn title(tag: &str) -> String {
    let known = match tag {
        "loss/total" => "weighted sum of the losses",
        "loss/entropy" => "entropy loss of the codes",
        "validation/l1" => "mean absolute error",
        "validation/psnr" => "PSNR (dB)",
        "validation/ssim" => "SSIM",
        "validation/lpips" => "LPIPS",
        "validation/clip" => "CLIP similarity to original",
        "validation/caption" => "CLIP similarity to caption",
        "validation/right_caption" => "right caption first",
        "validation/codes_used" => "codes used, validation",
        "validation/perplexity" => "perplexity (codes), validation",
        "codebook/codes_used" => "codes used, training",
        "codebook/perplexity" => "perplexity (codes), training",
        "optimizer/grad_norm" => "gradient norm before clipping",
        "optimizer/skipped" => "skipped steps so far",
        "discriminator/loss" => "loss of the discriminator",
        "discriminator/grad_norm" => "discriminator: gradient norm before clipping",
        "discriminator/skipped" => "discriminator: skipped steps so far",
        "discriminator/logits_real" => "discriminator: logits of originals",
        "discriminator/logits_fake" => "discriminator: logits of reconstructions",
        "discriminator/adaptive_weight" => "adaptive weight of the adversarial loss",
        "speed/images_per_second" => "images per second",
        "speed/data_wait" => "wait for images, per step",
        "batch/micro" => "micro-batch (images)",
        "memory/peak" => "peak memory of a step",
        "memory/process" => "GPU memory in use by the process, by the driver",
        "memory/host_buffers" => "memory of images that are read ahead",
        _ => {
            let (group, name) = tag.split_once('/').unwrap_or(("other", tag));
            let [group, name] = [group, name].map(|word| word.replace('_', " ").replace("clip ", "CLIP "));
            return match group.as_str() {
                "loss" => format!("{name} loss"),
                "optimizer" => name,
                _ => format!("{group}: {name}"),
            };
        }
    };
    known.to_owned()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_title_occurs_once() {
        let by_group = [
            ("loss", "total pixel charbonnier perceptual codebook entropy adversarial clip_image clip_text"),
            (
                "discriminator",
                "loss grad_norm learning_rate loss_scale skipped logits_real logits_fake adaptive_weight",
            ),
            ("optimizer", "grad_norm learning_rate loss_scale skipped"),
            ("validation", "l1 psnr ssim lpips clip caption right_caption codes_used perplexity"),
            ("codebook", "codes_used perplexity"),
            ("speed", "images_per_second data_wait"),
            ("memory", "peak process host_buffers forward backward optimizer"),
            ("new", "loss grad_norm peak"),
        ];
        let tags =
            by_group.iter().flat_map(|(group, names)| names.split(' ').map(move |name| format!("{group}/{name}")));
        let titles: Vec<String> = tags.map(|tag| title(&tag)).collect();
        assert_eq!(titles.iter().collect::<BTreeSet<_>>().len(), titles.len(), "{titles:?}");
        assert_eq!(title("loss/clip_text"), "CLIP text loss");
    }
}
