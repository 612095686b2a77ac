use super::*;

fn read_back(name: &str, bytes: &[u8]) -> Result<(NpyHeader, Vec<u8>), NpzError> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.npz");
    let mut archive = ZipWriter::new(File::create(&path).unwrap());
    archive.start_file(in_archive(name), SimpleFileOptions::default()).unwrap();
    archive.write_all(bytes).unwrap();
    archive.finish().unwrap();
    let mut npz = Npz::open(&path)?;
    let (header, mut reader) = npz.array("a")?;
    let mut elements = Vec::new();
    reader.read_to_end(&mut elements).unwrap();
    Ok((header, elements))
}

#[test]
fn what_is_written_is_read_again() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("stats.npz");
    let sigma: Vec<f64> = (0..9).map(|at| f64::from(at).sqrt()).collect();
    write_npz(&path, &[("mu", &[3], &sigma[..3]), ("sigma", &[3, 3], &sigma)]).unwrap();
    let mut npz = Npz::open(&path).unwrap();
    assert!(npz.has("mu") && !npz.has("arr_0"));
    assert_eq!(npz.floats("mu", &[3]).unwrap(), sigma[..3]);
    assert_eq!(npz.floats("sigma", &[3, 3]).unwrap(), sigma);
    assert!(matches!(npz.floats("sigma", &[2, 3]), Err(NpzError::Array { .. })));
    assert!(matches!(npz.floats("nu", &[3]), Err(NpzError::NoArray { .. })));
}

#[test]
fn the_elements_begin_at_a_multiple_of_64_bytes() {
    for shape in [&[] as &[usize], &[7], &[2048, 2048], &[50_000, 256, 256, 3]] {
        let bytes = header::write("<f8", shape);
        assert_eq!(bytes.len() % 64, 0);
        let header = NpyHeader::read(&mut &bytes[..]).unwrap();
        assert_eq!(header, NpyHeader { descr: "<f8".to_owned(), fortran_order: false, shape: shape.to_vec() });
    }
}

#[test]
fn headers_of_every_version_are_read() {
    let text = b"{'descr': '|u1', 'fortran_order': True, 'shape': (2, 3), }\n";
    let length = text.len() as u32;
    let versions = [
        [&MAGIC[..], &[1, 0], &(length as u16).to_le_bytes(), text, b"abcdef"].concat(),
        [&MAGIC[..], &[2, 0], &length.to_le_bytes(), text, b"abcdef"].concat(),
    ];
    for bytes in versions {
        let (header, elements) = read_back("a", &bytes).unwrap();
        assert_eq!(header, NpyHeader { descr: "|u1".to_owned(), fortran_order: true, shape: vec![2, 3] });
        assert_eq!(elements, b"abcdef");
    }
}

#[test]
fn what_is_no_array_is_refused() {
    assert!(matches!(read_back("b", b""), Err(NpzError::NoArray { .. })));
    for bytes in [&b"PK"[..], b"no array at all", &header::write("<f8", &[3])[..40]] {
        assert!(matches!(read_back("a", bytes), Err(NpzError::Array { .. })));
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.npz");
    assert!(matches!(Npz::open(&path), Err(NpzError::Io { .. })));
    std::fs::write(&path, "no archive").unwrap();
    assert!(matches!(Npz::open(&path), Err(NpzError::NotNpz { .. })));
}

const MAGIC: &[u8; 6] = b"\x93NUMPY";
