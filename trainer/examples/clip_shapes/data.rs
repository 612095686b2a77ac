//! Images, captions and wrong captions.

use burn::tensor::{DType, Device, Int, Tensor, TensorData};
use checkpoints::ClipArchitecture;
use datasets::{Attribute, ShapesSource, Source};
use trainer::models::clip::{ClipTokenizer, to_clip};
use trainer::models::weights::fnv1a;

use crate::Result;

/// Captions whose hash is a multiple of this are never trained on.
const HELD_OUT: u64 = 16;

/// Wrong captions of each image.
pub const WRONG_CAPTIONS: usize = 3;

/// The drawn images of one seed.
pub struct Samples {
    source: ShapesSource,
    size: usize,
}

impl Samples {
    /// As many images as there are numbers, of `size` x `size` pixels.
    pub fn new(seed: u64, size: usize) -> Result<Self> {
        Ok(Self { source: ShapesSource::new(seed, u32::MAX as usize, size as u32)?, size })
    }

    /// The next `count` images from `from` on that are held out or not, and the index after the last one.
    pub fn next(&self, from: usize, count: usize, held_out: bool) -> (Vec<usize>, usize) {
        let wanted = |index: &usize| fnv1a(self.caption(*index).bytes()).is_multiple_of(HELD_OUT) == held_out;
        let indices: Vec<usize> = (from..).filter(wanted).take(count).collect();
        let end = indices.last().map_or(from, |last| last + 1);
        (indices, end)
    }

    /// The caption of the image at `index`.
    pub fn caption(&self, index: usize) -> String {
        self.source.captions(index).concat()
    }

    /// The same with one attribute changed.
    pub fn changed_caption(&self, index: usize, attribute: Attribute) -> String {
        self.source.changed_caption(index, attribute, 0)
    }

    /// Captions that are wrong in one attribute each. What is learned late is changed more often: at first places and
    /// forms, in later `cycle`s forms.
    pub fn wrong_captions(&self, index: usize, cycle: u64) -> [String; WRONG_CAPTIONS] {
        use Attribute::{Background, Colour, Form, Number, Position, Size};
        const FIRST: [Attribute; 5] = [Background, Size, Background, Number, Colour];
        const LATER: [Attribute; 6] = [Background, Position, Size, Background, Number, Colour];
        let attributes = match cycle {
            0 => [Form, Position, FIRST[index % FIRST.len()]],
            _ => [Form, Form, LATER[index % LATER.len()]],
        };
        let mut draw = 0;
        attributes.map(|attribute| {
            let caption = self.source.changed_caption(index, attribute, draw);
            draw += cycle.min(1);
            caption
        })
    }

    /// Images as the image tower sees them, `[N, 3, S, S]`, without autodiff.
    pub fn images(&self, indices: &[usize], architecture: &ClipArchitecture, device: &Device) -> Result<Tensor<4>> {
        let mut pixels = Vec::with_capacity(indices.len() * self.size * self.size * 3);
        for &index in indices {
            pixels.extend(self.source.load(index)?.pixels.as_raw().iter().map(|level| f32::from(*level) / 127.5 - 1.0));
        }
        let data = TensorData::new(pixels, [indices.len(), self.size, self.size, 3]);
        let images = Tensor::<4>::from_data(data, (device, DType::F32)).permute([0, 3, 1, 2]);
        Ok(to_clip(images, architecture.mean, architecture.deviation))
    }
}

/// Captions as tokens `[N, L]`; `L` is that of the longest caption, since the embedding does not depend on the padding.
pub fn tokens(
    captions: &[String],
    tokenizer: &ClipTokenizer,
    end_of_text: u32,
    device: &Device,
) -> Result<Tensor<2, Int>> {
    let rows = captions.iter().map(|caption| Ok(tokenizer.encode(caption)?.ids)).collect::<Result<Vec<_>>>()?;
    let length = |ids: &Vec<u32>| ids.iter().position(|id| *id == end_of_text).map_or(ids.len(), |end| end + 1);
    let longest = rows.iter().map(length).max().unwrap_or(1);
    let ids: Vec<i64> = rows.iter().flat_map(|ids| &ids[..longest]).map(|id| i64::from(*id)).collect();
    Ok(Tensor::from_data(TensorData::new(ids, [rows.len(), longest]), device))
}
