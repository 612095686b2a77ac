//! Encodes the parts of TensorBoard's `Event` message that a run needs. The field numbers are those of `event.proto`
//! and `summary.proto`.

/// A value to show.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// A point of a curve.
    Scalar(f64),
    /// The distribution of several values.
    Histogram(Histogram),
    /// An encoded image.
    Image {
        /// Width in pixels.
        width: u32,
        /// Height in pixels.
        height: u32,
        /// The contents of the image file, such as a PNG.
        encoded: Vec<u8>,
    },
}

/// A distribution: counts of values between limits.
#[derive(Debug, Clone, PartialEq)]
pub struct Histogram {
    min: f64,
    max: f64,
    sum: f64,
    sum_squares: f64,
    limits: Vec<f64>,
    counts: Vec<f64>,
}

/// The number of buckets; TensorBoard draws 30.
const BUCKETS: usize = 30;

impl Histogram {
    /// The distribution of the finite `values`, such as the gradient norms of all parameters; `None` if there are none.
    pub fn of(values: &[f64]) -> Option<Self> {
        let finite = || values.iter().copied().filter(|value| value.is_finite());
        let min = finite().reduce(f64::min)?;
        let max = finite().reduce(f64::max)?;
        // If all values are equal, buckets still need a width.
        let width = ((max - min) / BUCKETS as f64).max(f64::from(f32::MIN_POSITIVE)).max(max.abs() * 1e-12);
        let mut counts = vec![0.0; BUCKETS];
        for value in finite() {
            counts[(((value - min) / width) as usize).min(BUCKETS - 1)] += 1.0;
        }
        Some(Self {
            min,
            max,
            sum: finite().sum(),
            sum_squares: finite().map(|value| value * value).sum(),
            limits: (1..=BUCKETS).map(|n| min + width * n as f64).collect(),
            counts,
        })
    }
}

/// An encoded `Event`.
pub(super) struct Event(Message);

impl Event {
    /// The first record of a file.
    pub(super) fn version(wall_time: f64) -> Self {
        let mut event = Message::default();
        event.double(1, wall_time);
        event.bytes(3, b"brain.Event:2");
        Self(event)
    }

    /// Tells TensorBoard to drop the events of earlier files from `first_step` on.
    pub(super) fn start(wall_time: f64, first_step: u64) -> Self {
        const START: u64 = 1;
        let mut session = Message::default();
        session.integer(1, START);
        let mut event = Message::of_step(wall_time, first_step);
        event.message(7, &session);
        Self(event)
    }

    pub(super) fn summary(wall_time: f64, step: u64, values: &[(String, Value)]) -> Self {
        let mut summary = Message::default();
        for (tag, value) in values {
            summary.message(1, &Message::of_value(tag, value));
        }
        let mut event = Message::of_step(wall_time, step);
        event.message(5, &summary);
        Self(event)
    }

    pub(super) fn as_bytes(&self) -> &[u8] {
        &self.0.0
    }
}

/// A protobuf message to which fields are appended. Fields with their default value are written too.
#[derive(Default)]
struct Message(Vec<u8>);

/// The encoding of a field.
#[derive(Clone, Copy)]
enum Wire {
    Varint = 0,
    Eight = 1,
    Bytes = 2,
    Four = 5,
}

impl Message {
    fn of_step(wall_time: f64, step: u64) -> Self {
        let mut event = Self::default();
        event.double(1, wall_time);
        event.integer(2, step);
        event
    }

    fn of_value(tag: &str, value: &Value) -> Self {
        let mut message = Self::default();
        message.bytes(1, tag.as_bytes());
        match value {
            Value::Scalar(number) => message.float(2, *number as f32),
            Value::Image { width, height, encoded } => {
                const RGB: u64 = 3;
                let mut image = Self::default();
                image.integer(1, u64::from(*height));
                image.integer(2, u64::from(*width));
                image.integer(3, RGB);
                image.bytes(4, encoded);
                message.message(4, &image);
            }
            Value::Histogram(histogram) => {
                let mut inner = Self::default();
                inner.double(1, histogram.min);
                inner.double(2, histogram.max);
                inner.double(3, histogram.counts.iter().sum());
                inner.double(4, histogram.sum);
                inner.double(5, histogram.sum_squares);
                inner.doubles(6, &histogram.limits);
                inner.doubles(7, &histogram.counts);
                message.message(5, &inner);
            }
        }
        message
    }

    fn key(&mut self, field: u64, wire: Wire) {
        self.varint(field << 3 | wire as u64);
    }

    fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }

    fn integer(&mut self, field: u64, value: u64) {
        self.key(field, Wire::Varint);
        self.varint(value);
    }

    fn float(&mut self, field: u64, value: f32) {
        self.key(field, Wire::Four);
        self.0.extend(value.to_le_bytes());
    }

    fn double(&mut self, field: u64, value: f64) {
        self.key(field, Wire::Eight);
        self.0.extend(value.to_le_bytes());
    }

    fn doubles(&mut self, field: u64, values: &[f64]) {
        let packed: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        self.bytes(field, &packed);
    }

    fn bytes(&mut self, field: u64, bytes: &[u8]) {
        self.key(field, Wire::Bytes);
        self.varint(bytes.len() as u64);
        self.0.extend(bytes);
    }

    fn message(&mut self, field: u64, message: &Message) {
        self.bytes(field, &message.0);
    }
}
