//! Finds truncated JPEG files, and those with several scans.

/// What the segments of a JPEG file say.
pub struct JpegFrame {
    /// Whether an end marker follows the start of the first scan. Nothing else looks like one there: in the data of a
    /// scan, 0 or a restart marker always follows 0xFF, and the end marker of a thumbnail is before the scan.
    pub has_end: bool,
    /// Whether the first scan has all data: it is not progressive, and has all components.
    pub in_one_scan: bool,
}

impl JpegFrame {
    pub fn of(bytes: &[u8]) -> Self {
        const START_OF_SCAN: u8 = 0xDA;
        const PROGRESSIVE: u8 = 0xC2;
        const WITHOUT_LENGTH: std::ops::RangeInclusive<u8> = 0xD0..=0xD8;
        let (mut rest, mut in_one_scan, mut components) = (bytes, true, None);
        loop {
            match *rest {
                [0xFF, 0xFF, ..] => rest = &rest[1..],
                [0xFF, marker, ..] if WITHOUT_LENGTH.contains(&marker) || marker == 0x01 => rest = &rest[2..],
                [0xFF, START_OF_SCAN, ..] => {
                    in_one_scan &= components == rest.get(4);
                    return Self { has_end: rest.windows(2).rev().any(|pair| pair == [0xFF, 0xD9]), in_one_scan };
                }
                [0xFF, marker, high, low, ..] => {
                    if (0xC0..=PROGRESSIVE).contains(&marker) {
                        (in_one_scan, components) = (marker != PROGRESSIVE, rest.get(9));
                    }
                    let Some(next) = rest.get(2 + usize::from(u16::from_be_bytes([high, low]))..) else {
                        return Self { has_end: false, in_one_scan };
                    };
                    rest = next;
                }
                // These are no segments. The decoder has a better error message for this.
                _ => return Self { has_end: !rest.is_empty(), in_one_scan },
            }
        }
    }
}
