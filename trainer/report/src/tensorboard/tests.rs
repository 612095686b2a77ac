use std::collections::BTreeMap;

use super::record::masked;
use super::*;

/// A field of a protobuf message.
#[derive(Debug, Clone, PartialEq)]
enum Field {
    Varint(u64),
    Double(f64),
    Float(f32),
    Bytes(Vec<u8>),
}

impl Field {
    fn bytes(&self) -> &[u8] {
        match self {
            Self::Bytes(bytes) => bytes,
            other => panic!("{other:?}"),
        }
    }
}

fn varint(bytes: &mut &[u8]) -> u64 {
    let mut value = 0;
    for shift in (0..).step_by(7) {
        let byte = bytes[0];
        *bytes = &bytes[1..];
        value |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            break;
        }
    }
    value
}

fn take<'a>(bytes: &mut &'a [u8], count: usize) -> &'a [u8] {
    let (taken, rest) = bytes.split_at(count);
    *bytes = rest;
    taken
}

/// A message's fields by number.
fn fields(mut bytes: &[u8]) -> BTreeMap<u64, Vec<Field>> {
    let mut fields: BTreeMap<u64, Vec<Field>> = BTreeMap::new();
    while !bytes.is_empty() {
        let key = varint(&mut bytes);
        let field = match key & 7 {
            0 => Field::Varint(varint(&mut bytes)),
            1 => Field::Double(f64::from_le_bytes(take(&mut bytes, 8).try_into().unwrap())),
            2 => {
                let length = varint(&mut bytes) as usize;
                Field::Bytes(take(&mut bytes, length).to_vec())
            }
            5 => Field::Float(f32::from_le_bytes(take(&mut bytes, 4).try_into().unwrap())),
            wire => panic!("wire type {wire}"),
        };
        fields.entry(key >> 3).or_default().push(field);
    }
    fields
}

/// The whole records of a file, as TensorBoard reads them: up to the first that is torn or whose checksums are wrong.
fn records(mut bytes: &[u8]) -> Vec<Vec<u8>> {
    let checked = |data: &[u8], crc: &[u8]| masked(crc32c::crc32c(data)).to_le_bytes() == crc;
    let mut records = Vec::new();
    while bytes.len() >= 12 && checked(&bytes[..8], &bytes[8..12]) {
        let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
        let Some(record) = bytes.get(12..12 + length) else { break };
        let Some(crc) = bytes.get(12 + length..16 + length) else { break };
        assert!(checked(record, crc));
        records.push(record.to_vec());
        bytes = &bytes[16 + length..];
    }
    records
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let mut files: Vec<_> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files
}

fn scalar(tag: &str, value: f64) -> (String, Value) {
    (tag.to_owned(), Value::Scalar(value))
}

#[test]
fn a_file_says_its_version_and_where_it_starts_and_then_its_values() {
    let folder = tempfile::tempdir().unwrap();
    let mut events = EventFile::create(&folder.path().join("tensorboard"), 101).unwrap();
    events.write(101, &[scalar("loss/pixel", 0.1), scalar("memory/peak", 3e9)]).unwrap();
    events.write(300, &[]).unwrap();
    let image = Value::Image { width: 4, height: 300, encoded: b"png".to_vec() };
    events.write(300, &[("samples".to_owned(), image)]).unwrap();

    let files = files(&folder.path().join("tensorboard"));
    assert_eq!(files.len(), 1);
    let events: Vec<_> = records(&fs::read(&files[0]).unwrap()).iter().map(|record| fields(record)).collect();
    assert_eq!(events.len(), 4);
    assert!(events.iter().all(|event| matches!(event[&1][0], Field::Double(time) if time > 1.6e9)));
    assert_eq!(events[0][&3][0].bytes(), b"brain.Event:2");
    assert_eq!(events[1][&2], [Field::Varint(101)]);
    assert_eq!(fields(events[1][&7][0].bytes())[&1], [Field::Varint(1)]);

    assert_eq!(events[2][&2], [Field::Varint(101)]);
    let values: Vec<_> = fields(events[2][&5][0].bytes())[&1].iter().map(|value| fields(value.bytes())).collect();
    assert_eq!(values[0][&1][0].bytes(), b"loss/pixel");
    assert_eq!(values[0][&2], [Field::Float(0.1)]);
    assert_eq!(values[1][&2], [Field::Float(3e9)]);

    assert_eq!(events[3][&2], [Field::Varint(300)]);
    let value = fields(fields(events[3][&5][0].bytes())[&1][0].bytes());
    let image = fields(value[&4][0].bytes());
    assert_eq!([&image[&1][0], &image[&2][0]], [&Field::Varint(300), &Field::Varint(4)]);
    assert_eq!(image[&4][0].bytes(), b"png");
}

#[test]
fn a_torn_record_hides_none_before_it() {
    let folder = tempfile::tempdir().unwrap();
    let mut events = EventFile::create(folder.path(), 1).unwrap();
    events.write(1, &[scalar("loss/total", 1.0)]).unwrap();
    let whole = fs::read(&files(folder.path())[0]).unwrap();
    events.write(2, &[scalar("loss/total", 2.0)]).unwrap();
    let longer = fs::read(&files(folder.path())[0]).unwrap();
    assert_eq!(records(&longer).len(), 4);
    for length in whole.len()..longer.len() {
        assert_eq!(records(&longer[..length]).len(), 3, "{length} bytes");
    }
    // A record that was damaged is found out.
    let mut damaged = longer.clone();
    damaged[whole.len() - 20] ^= 1;
    assert!(std::panic::catch_unwind(|| records(&damaged)).is_err());
}

/// Several processes within one second, and after a clock that was wrong: TensorBoard goes by the names.
#[test]
fn a_later_file_has_a_later_name() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("events.out.tfevents.4000000000.elsewhere.7"), "").unwrap();
    for first_step in [1, 11, 21] {
        EventFile::create(folder.path(), first_step).unwrap();
    }
    let starts: Vec<_> = files(folder.path())[1..]
        .iter()
        .map(|path| fields(&records(&fs::read(path).unwrap())[1])[&2][0].clone())
        .collect();
    assert_eq!(starts, [1, 11, 21].map(Field::Varint));
}

#[test]
fn a_histogram_counts_every_finite_value_once() {
    let values: Vec<f64> = (0..=100).map(f64::from).chain([f64::NAN, f64::INFINITY]).collect();
    let histogram = Histogram::of(&values).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let mut events = EventFile::create(folder.path(), 1).unwrap();
    events.write(1, &[("gradients".to_owned(), Value::Histogram(histogram))]).unwrap();
    let record = records(&fs::read(&files(folder.path())[0]).unwrap()).pop().unwrap();
    let value = fields(fields(fields(&record)[&5][0].bytes())[&1][0].bytes());
    let histogram = fields(value[&5][0].bytes());
    let numbers: Vec<_> = (1..=5).map(|field| histogram[&field][0].clone()).collect();
    assert_eq!(numbers, [0.0, 100.0, 101.0, 5050.0, 338_350.0].map(Field::Double));
    let doubles = |field: u64| -> Vec<f64> {
        histogram[&field][0].bytes().chunks(8).map(|eight| f64::from_le_bytes(eight.try_into().unwrap())).collect()
    };
    let (limits, counts) = (doubles(6), doubles(7));
    assert!(limits.is_sorted() && limits.len() == counts.len());
    assert_eq!(counts.iter().sum::<f64>(), 101.0);
    // 0, 1, 2, 3 are below 100 / 30.
    assert_eq!(counts[0], 4.0);

    assert_eq!(Histogram::of(&[f64::NAN]), None);
    for one in [0.0, 3.5, -1e300] {
        let histogram = Histogram::of(&[one; 3]).unwrap();
        assert_ne!(histogram, Histogram::of(&[one; 2]).unwrap());
    }
}

#[test]
fn the_error_names_the_folder() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let error = EventFile::create(file.path(), 1).unwrap_err().to_string();
    assert!(error.contains(file.path().to_str().unwrap()) && !error.contains('\n'), "{error}");
}

/// RFC 3720, B.4, and the mask of TensorFlow's `crc32c.h`.
#[test]
fn checksums_are_masked_crc32c() {
    assert_eq!(crc32c::crc32c(&[0; 32]), 0x8a91_36aa);
    assert_eq!(masked(0), 0xa282_ead8);
    assert_eq!(masked(0x8a91_36aa), 0x0fd7_fffa);
}
