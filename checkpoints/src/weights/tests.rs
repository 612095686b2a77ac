use std::path::PathBuf;

use super::*;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src/fixtures").join(name)
}

fn open_bytes(bytes: &[u8]) -> Result<WeightsFile, WeightsError> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("weights.ckpt");
    std::fs::write(&path, bytes).unwrap();
    WeightsFile::open(&path)
}

fn values(file: &WeightsFile, name: &str) -> (Dtype, Vec<usize>, Vec<f32>) {
    let tensor = file.read(name).unwrap();
    let values = tensor.to_f32();
    assert_eq!(file.info(name), Some((tensor.dtype, &tensor.shape[..])));
    (tensor.dtype, tensor.shape, values)
}

/// What `tensors()` of make.py says.
fn check_tensors(file: &WeightsFile, dtypes: &[Dtype]) {
    let ramp = [0., 1., 2., 3., 4., 5.].to_vec();
    let plus = [1., 2., 3., 4., 5., 6.].to_vec();
    let expected = [
        ("bfloat", Dtype::BF16, vec![2, 3], ramp.clone()),
        ("double", Dtype::F64, vec![2, 3], ramp.clone()),
        ("empty", Dtype::F32, vec![0, 4], vec![]),
        ("expanded", Dtype::F32, vec![2, 2], vec![7.; 4]),
        ("half", Dtype::F16, vec![2, 3], ramp.clone()),
        ("long", Dtype::I64, vec![3], vec![0., 1., 2.]),
        ("parameter", Dtype::F32, vec![2, 3], plus),
        ("plain", Dtype::F32, vec![2, 3], ramp),
        ("scalar", Dtype::F32, vec![], vec![2.5]),
        ("shared", Dtype::F32, vec![3], vec![3., 4., 5.]),
        ("transposed", Dtype::F32, vec![3, 2], vec![0., 3., 1., 4., 2., 5.]),
    ];
    let expected: Vec<_> = expected.into_iter().filter(|e| dtypes.contains(&e.1)).collect();
    let names: Vec<&str> = file.names().collect();
    assert_eq!(names, expected.iter().map(|e| e.0).collect::<Vec<_>>());
    for (name, dtype, shape, elements) in expected {
        assert_eq!(values(file, name), (dtype, shape, elements), "{name}");
    }
}

const ALL: [Dtype; 5] = [Dtype::F32, Dtype::F16, Dtype::BF16, Dtype::F64, Dtype::I64];

#[test]
fn lightning_checkpoints_in_every_container() {
    for name in ["lightning.ckpt", "lightning-legacy.ckpt", "lightning-protocol-4.ckpt"] {
        let file = WeightsFile::open(fixture(name)).unwrap();
        check_tensors(&file, &ALL);
        assert_eq!(file.hyper("embed_dim"), Some(4.into()), "{name}");
        assert_eq!(file.hyper("absent"), None);
    }
}

#[test]
fn compressed_and_big_endian_archives() {
    check_tensors(&WeightsFile::open(fixture("deflated.pt")).unwrap(), &ALL);
    check_tensors(&WeightsFile::open(fixture("big-endian.pt")).unwrap(), &[Dtype::F32]);
}

#[test]
fn averaged_weights_come_first_and_others_can_be_asked_for() {
    for name in ["llamagen.pt", "llamagen-legacy.pt"] {
        let file = WeightsFile::open(fixture(name)).unwrap();
        assert_eq!(values(&file, "weight").2, [1., 2., 3., 4.]);
        assert_eq!(file.hyper("codebook_l2_norm"), Some(false.into()));
        assert_eq!(file.hyper("commit_loss_beta"), Some(0.5.into()));
        assert_eq!(file.hyper("vq_ckpt"), Some(Json::Null));
        assert_eq!(file.hyper("betas"), Some(serde_json::json!([0.9, 0.95])));
        let file = WeightsFile::open_with(fixture(name), Some("model")).unwrap();
        assert_eq!(values(&file, "weight").2, [0., 1., 2., 3.]);
        let error = WeightsFile::open_with(fixture(name), Some("steps")).unwrap_err();
        let error = error.to_string();
        assert!(error.ends_with("keys are model, ema, args, steps"), "{error}");
    }
}

#[test]
fn code_in_a_file_is_never_run() {
    let file = WeightsFile::open(fixture("attack.pt")).unwrap();
    assert_eq!(file.names().collect::<Vec<_>>(), ["a", "b"]);
    assert_eq!(values(&file, "a").2, [1., 1.]);
    let error = WeightsFile::open(fixture("attack-legacy.pt")).unwrap_err().to_string();
    assert!(error.contains("whole pickled object (posix.system)"), "{error}");
    assert!(!Path::new("/tmp/vqgan-checkpoints-attack").exists());
}

#[test]
fn what_is_no_weights_is_named() {
    let says = |bytes: &[u8], what: &str| {
        let error = open_bytes(bytes).unwrap_err().to_string();
        assert!(error.contains(what), "{error}");
        assert!(error.contains("weights.ckpt") && !error.contains('\n'), "{error}");
    };
    says(b"", "it is empty");
    says(b"model:\n  target: taming.models.vqgan.VQModel\n", "a text file");
    says(b"\n<!DOCTYPE html><html>", "a web page");
    says(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull");
    says(&[b"storages".as_slice(), &[0; 249], b"ustar\x0000"].concat(), "re-save it");
    says(b"\x80\x04}\x94.", "a pickle, not made by torch.save");
    says(b"PK\x05\x06", "neither");
    says(b"PK\x03\x04 and nothing more", "damaged");
    says(&[0x93, 0xff, 0, 1, 2], "neither");
    says(b"\x40\x00\x00\x00\x00\x00\x00\x00{}", "cut off");
    let error = WeightsFile::open(fixture("no-tensors.pt")).unwrap_err().to_string();
    assert!(error.ends_with("the top-level keys are epoch, config"), "{error}");
}

#[test]
fn safetensors_are_read_as_they_were_written() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    let half = HostTensor { dtype: Dtype::F16, shape: vec![1], bytes: vec![0, 0x3c] };
    let tensors =
        BTreeMap::from([("half".to_owned(), half), ("float".to_owned(), HostTensor::from_f32([1, 2], &[1., 2.]))]);
    crate::write_safetensors(&path, &tensors, None).unwrap();
    // The folder of a transformers model: found by name, and nothing else is left in it.
    let file = WeightsFile::open(folder.path()).unwrap();
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    assert_eq!(values(&file, "float"), (Dtype::F32, vec![1, 2], vec![1., 2.]));
    assert_eq!(values(&file, "half"), (Dtype::F16, vec![1], vec![1.]));
    assert!(matches!(file.read("other"), Err(WeightsError::NoTensor { .. })));

    let mut bytes = std::fs::read(&path).unwrap();
    bytes.pop();
    let error = open_bytes(&bytes).unwrap_err().to_string();
    assert!(error.contains("cut off"), "{error}");
}

#[test]
fn a_folder_without_weights_says_what_is_looked_for() {
    let folder = tempfile::tempdir().unwrap();
    let error = WeightsFile::open(folder.path()).unwrap_err().to_string();
    assert!(error.contains("diffusion_pytorch_model.safetensors"), "{error}");
    let name = folder.path().join("diffusion_pytorch_model.safetensors.index.json");
    std::fs::write(name, "{}").unwrap();
    let error = WeightsFile::open(folder.path()).unwrap_err().to_string();
    assert!(error.contains("split over several files"), "{error}");
}

/// Opens and reads whatever can be read; only that it ends without a panic matters.
fn exercise(path: &Path, bytes: &[u8]) {
    std::fs::write(path, bytes).unwrap();
    if let Ok(file) = WeightsFile::open(path) {
        for name in file.names() {
            let _ = file.read(name);
        }
        let _ = file.hyper("codebook_l2_norm");
        let _ = crate::Architecture::infer(&file, None);
    }
}

#[test]
fn damaged_files_are_errors_and_never_panics() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("weights");
    let files = [
        "lightning.ckpt",
        "lightning-legacy.ckpt",
        "llamagen.pt",
        "llamagen-legacy.pt",
        "attack-legacy.pt",
        "deflated.pt",
        "big-endian.pt",
    ];
    for name in files {
        let whole = std::fs::read(fixture(name)).unwrap();
        // Small files at every byte, large ones at some of them.
        for position in (0..whole.len()).step_by(1 + whole.len() / 1000) {
            exercise(&path, &whole[..position]);
            for flip in [0xff, 0x01, 0x80] {
                let mut damaged = whole.clone();
                damaged[position] ^= flip;
                exercise(&path, &damaged);
            }
        }
    }
}
