use super::*;
use crate::fixtures::fixture;

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
fn a_device_is_no_file_of_weights() {
    for path in ["/dev/zero", "/dev/null"].map(Path::new) {
        let error = WeightsFile::open(path).map(drop);
        assert!(!path.exists() || matches!(error, Err(WeightsError::NotWeights { .. })));
    }
}

#[test]
fn a_folder_without_weights_says_what_is_looked_for() {
    let folder = tempfile::tempdir().unwrap();
    let error = WeightsFile::open(folder.path()).unwrap_err().to_string();
    assert!(error.contains("diffusion_pytorch_model.safetensors"), "{error}");
}

/// Tensors in two files with their index, as transformers and diffusers write them.
fn sharded(folder: &Path, name: &str, shards: [&str; 2]) -> BTreeMap<String, HostTensor> {
    let tensor = |(index, name): (usize, &str)| (name.to_owned(), HostTensor::from_f32([2], &[index as f32, 0.5]));
    let tensors: BTreeMap<_, _> = ["a.weight", "b.weight", "c.bias"].into_iter().enumerate().map(tensor).collect();
    let place = |name: &str| shards[usize::from(name > "b")];
    for shard in shards {
        let some = tensors.iter().filter(|(name, _)| place(name) == shard);
        let some = some.map(|(name, tensor)| (name.clone(), tensor.clone())).collect();
        let path = folder.join(shard);
        match shard.ends_with("bin") {
            true => write_torch(File::create(path).unwrap(), "state_dict", &some, None).unwrap(),
            false => drop(crate::write_safetensors(&path, &some, None).unwrap()),
        }
    }
    let map: serde_json::Map<_, _> = tensors.keys().map(|name| (name.clone(), place(name).into())).collect();
    let index = serde_json::json!({"metadata": {"total_size": 24}, "weight_map": map});
    std::fs::write(folder.join(format!("{name}.index.json")), index.to_string()).unwrap();
    tensors
}

#[test]
fn weights_in_several_files_are_read_through_their_index() {
    for (name, shards) in [
        ("model.safetensors", ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]),
        ("diffusion_pytorch_model.safetensors", ["d-00001-of-00002.safetensors", "d-00002-of-00002.safetensors"]),
        ("pytorch_model.bin", ["pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin"]),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let tensors = sharded(folder.path(), name, shards);
        let index = folder.path().join(format!("{name}.index.json"));
        for path in [folder.path(), &index] {
            let file = WeightsFile::open(path).unwrap();
            assert_eq!(file.names().collect::<Vec<_>>(), ["a.weight", "b.weight", "c.bias"]);
            for (name, tensor) in &tensors {
                assert_eq!(&file.read(name).unwrap(), tensor);
                assert_eq!(file.info(name), Some((Dtype::F32, &[2][..])));
            }
            assert!(matches!(file.read("d"), Err(WeightsError::NoTensor { .. })));
        }
        let fails = |change: &dyn Fn(String) -> String, named: &[&str]| {
            let whole = std::fs::read_to_string(&index).unwrap();
            std::fs::write(&index, change(whole.clone())).unwrap();
            let error = WeightsFile::open(folder.path()).unwrap_err().to_string();
            assert!(named.iter().all(|name| error.contains(name)) && !error.contains('\n'), "{error}");
            std::fs::write(&index, whole).unwrap();
        };
        fails(&|text| text.replace("c.bias", "d.bias"), &[shards[1], "d.bias"]);
        fails(&|text| text.replace(shards[0], "absent.bin"), &["absent.bin"]);
        for outside in ["../absent.bin", "/etc/hostname", "inner/absent.bin", "..", ""] {
            fails(&|text| text.replace(shards[0], outside), &[outside, "a.weight"]);
        }
        fails(&|text| text.replace(shards[0], &format!("{name}.index.json")), &[name]);
        fails(&|text| text.replace("weight_map", "map"), &["weight_map"]);
        fails(&|_| "{".to_owned(), &["index.json"]);
        std::fs::remove_file(folder.path().join(shards[1])).unwrap();
        fails(&|text| text, &[shards[1]]);
        std::fs::write(folder.path().join(shards[1]), "cut off").unwrap();
        fails(&|text| text, &[shards[1]]);
    }
}

/// `torch.save` of dicts in dicts: `{"params_ema": {...}, "state": {"generator": {...}, "step": 7}, "epoch": 3}`.
fn nested() -> Vec<u8> {
    let text = |text: &str| [&b"X"[..], &(text.len() as u32).to_le_bytes(), text.as_bytes()].concat();
    let tensor = |value: u8| {
        // torch._utils._rebuild_tensor_v2(storage, offset 0, size (1,), stride (1,), False, OrderedDict())
        let storage =
            [b"(".as_slice(), &text("storage"), b"ctorch\nFloatStorage\n", &text(&value.to_string())].concat();
        let storage = [&storage[..], &text("cpu"), b"K\x01tQ"].concat();
        [b"ctorch._utils\n_rebuild_tensor_v2\n(", &storage[..], b"K\x00K\x01\x85K\x01\x85\x89}tR"].concat()
    };
    let dict = |entries: &[(&str, Vec<u8>)]| {
        let entries: Vec<u8> = entries.iter().flat_map(|(key, value)| [text(key), value.clone()].concat()).collect();
        [b"}(", &entries[..], b"u"].concat()
    };
    let state = dict(&[("generator", dict(&[("weight", tensor(1))])), ("step", b"K\x07".to_vec())]);
    let top = dict(&[("params_ema", dict(&[("weight", tensor(0))])), ("state", state), ("epoch", b"K\x03".to_vec())]);
    let pickle = [b"\x80\x02", &top[..], b"."].concat();
    let mut archive = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
    let values = [2f32.to_le_bytes(), 3f32.to_le_bytes()];
    for (name, bytes) in [("m/data.pkl", &pickle[..]), ("m/data/0", &values[0]), ("m/data/1", &values[1])] {
        let plain = zip::write::SimpleFileOptions::default().compression_method(zip::CompressionMethod::Stored);
        archive.start_file(name, plain).unwrap();
        std::io::Write::write_all(&mut archive, bytes).unwrap();
    }
    archive.finish().unwrap().into_inner()
}

#[test]
fn inner_keys_are_asked_for_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("gan.pth");
    std::fs::write(&path, nested()).unwrap();
    let open = |key: Option<&str>| WeightsFile::open_with(&path, key);
    let weight = |key: &str| values(&open(Some(key)).unwrap(), "weight").2;
    assert_eq!(weight("params_ema"), [2.]);
    assert_eq!(weight("state/generator"), [3.]);
    for (key, there) in [
        (None, &["params_ema", "state", "epoch"][..]),
        (Some("generator"), &["params_ema", "state", "epoch"]),
        (Some("state"), &["generator", "step"]),
        (Some("state/ema"), &["generator", "step"]),
        (Some("state/step"), &["generator", "step"]),
        (Some("epoch"), &["params_ema", "state", "epoch"]),
    ] {
        let error = open(key).unwrap_err();
        let WeightsError::Key { keys, .. } = &error else { panic!("{error}") };
        assert_eq!(keys, there, "{key:?}");
        assert!(key.is_some() || error.to_string().contains("gan.pth#"), "{error}");
    }
    // As a location, for every kind of weights; a file that has such a name itself is that file.
    let spec = format!("{}#state/generator", path.display());
    let location = crate::hub::Location::parse(&spec).unwrap();
    assert_eq!(location.to_string(), spec);
    let settings = crate::hub::HubSettings::from_env();
    let find = |spec: &str| {
        let location = crate::hub::Location::parse(spec).unwrap();
        crate::hub::fetch(&location, crate::hub::FileChoice::Any, &settings, &()).unwrap()
    };
    let fetched = find(&spec);
    assert_eq!(values(&WeightsFile::open_fetched(&fetched).unwrap(), "weight").2, [3.]);
    let inner = folder.path().join("gan.pth#state");
    std::fs::create_dir(&inner).unwrap();
    crate::write_safetensors(
        &inner.join("generator"),
        &BTreeMap::from([("x".into(), HostTensor::from_f32([1], &[5.]))]),
        None,
    )
    .unwrap();
    assert_eq!(find(&spec), Fetched { weights: inner.join("generator"), key: None });
    std::fs::copy(&path, folder.path().join("a#b.pth")).unwrap();
    let both = find(&format!("{}#params_ema", folder.path().join("a#b.pth").display()));
    assert_eq!(values(&WeightsFile::open_fetched(&both).unwrap(), "weight").2, [2.]);
    // The loaders of other networks ask for the key that is named, too.
    let error = crate::load_discriminator(fetched.clone()).unwrap_err().to_string();
    assert!(error.contains("it has weight, ..."), "{error}");
    let error = crate::load_lpips_linear(crate::LpipsNetwork::AlexNet, fetched).unwrap_err().to_string();
    assert!(error.contains("no linear layers"), "{error}");
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
