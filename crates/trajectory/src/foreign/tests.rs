use super::*;
use lcsc_torch::{Device, Kind};
use proptest::prelude::*;

fn tensors() -> Vec<(String, Tensor)> {
    let values = Tensor::arange(24, (Kind::Float, Device::Cpu)) / 7.0;
    vec![
        ("b.weight".into(), values.view([2, 3, 4])),
        ("a.bias".into(), values.narrow(0, 3, 5)),
        ("scalar".into(), values.get(1)),
    ]
}

fn read(bytes: &[u8]) -> Result<Vec<(String, Tensor)>> {
    read_tensors(Path::new("theirs.pt"), bytes, None)
}

fn refused(bytes: &[u8]) -> String {
    read(bytes).unwrap_err().to_string()
}

#[test]
fn a_state_dict_survives_the_round_trip_bit_for_bit() {
    let found = read(&state_dict(&tensors(), "").unwrap()).unwrap();
    assert_eq!(found.len(), 3);
    for ((name, tensor), (expected_name, expected)) in found.iter().zip(tensors()) {
        assert!(*name == expected_name && tensor.equal(&expected) && tensor.size() == expected.size(), "{name}");
    }
}

#[test]
fn wrapped_names_lose_their_prefix_only_where_all_have_it() {
    let wrapped = |prefix: [&str; 2]| {
        let named = prefix.iter().zip(tensors()).map(|(p, (name, t))| (format!("{p}{name}"), t)).collect::<Vec<_>>();
        let found = read(&state_dict(&named, "").unwrap()).unwrap();
        found.into_iter().map(|(name, _)| name).collect::<Vec<_>>()
    };
    assert_eq!(wrapped(["module.", "module."]), ["b.weight", "a.bias"]);
    assert_eq!(wrapped(["module.", ""]), ["module.b.weight", "a.bias"]);
}

#[test]
fn every_truncation_is_an_error() {
    let whole = state_dict(&tensors()[..1], "").unwrap();
    for n in 0..whole.len() {
        assert!(read(&whole[..n]).is_err(), "{n} of {} bytes", whole.len());
    }
}

#[test]
fn what_no_state_dict_needs_is_named_and_refused() {
    let text = refused(b"\x80\x02cos\nsystem\n(X\x04\0\0\0true\x85R.");
    assert!(text.contains("theirs.pt") && text.contains("`os.system`") && text.contains("refused"), "{text}");
    assert!(refused(b"\x80\x02}.").contains("no state dict and no module"));
    // A state dict without the storages beside it.
    let lonely = b"\x80\x02}X\x01\0\0\0wctorch._utils\n_rebuild_tensor_v2\n((X\x07\0\0\0storagectorch\nFloatStorage\n\
                   X\x01\0\0\0aX\x03\0\0\0cpuK\x04tQK\0K\x04\x85K\x01\x85I00\n}tRs.";
    let text = refused(lonely);
    assert!(text.contains("`w`") && text.contains("a storage `a` that the file does not hold"), "{text}");
}

#[test]
fn tensors_that_do_not_fit_their_storage_are_refused() {
    // The sizes (2, 3, 4) are eight bytes each after LONG1.
    let sizes: Vec<u8> = [2i64, 3, 4].iter().flat_map(|n| [vec![0x8a, 8], n.to_le_bytes().to_vec()].concat()).collect();
    for huge in [3, 1 << 40, i64::MAX, -2, i64::MIN] {
        let text = refused(&with_pickle(|pickle| {
            let at = pickle.windows(sizes.len()).position(|w| w == sizes).unwrap();
            pickle[at + 2..at + 10].copy_from_slice(&huge.to_le_bytes());
        }));
        assert!(
            text.contains("b.weight") && (text.contains("reaches beyond") || text.contains("has the shape")),
            "{text}"
        );
    }
}

#[test]
fn strides_and_offsets_out_of_range_are_refused() {
    // Offset 0 (`K\0`) and the stride 1 of the bias [5].
    let bias = [0x8a, 8, 5, 0, 0, 0, 0, 0, 0, 0, b't', b'(', 0x8a, 8];
    for stride in [2, 1 << 61, i64::MAX, -1, i64::MIN] {
        let text = refused(&with_pickle(|pickle| {
            let at = pickle.windows(bias.len()).position(|w| w == bias).unwrap() + bias.len();
            pickle[at..at + 8].copy_from_slice(&i64::to_le_bytes(stride));
        }));
        assert!(text.contains("a.bias") && (text.contains("beyond") || text.contains("strides")), "{text}");
    }
    let text = refused(&with_pickle(|pickle| {
        let at = pickle.windows(4).position(|w| w == b"QK\0(").unwrap();
        pickle[at + 2] = 1;
    }));
    assert!(text.contains("b.weight") && text.contains("at 1 reaches beyond its storage of 24"), "{text}");
}

/// A zip of one state dict entry after another, all of the pickle `data`.
fn zipped(data: &[u8], storage: &[u8], method: zip::CompressionMethod) -> Vec<u8> {
    let mut zip = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
    for (name, bytes) in [("x/data.pkl", data), ("x/data/0", storage)] {
        let options = zip::write::SimpleFileOptions::default().compression_method(method);
        zip.start_file(name, options).unwrap();
        std::io::Write::write_all(&mut zip, bytes).unwrap();
    }
    zip.finish().unwrap().into_inner()
}

#[test]
fn zips_that_unfold_are_refused() {
    let bomb = zipped(b"\x80\x02}.", &[0; 1 << 16], zip::CompressionMethod::Deflated);
    assert!(refused(&bomb).contains("is compressed, which torch.save never does"));
    // The central directory says that the pickle is longer than it is.
    let mut lying = state_dict(&tensors(), "").unwrap();
    let at = lying.windows(4).position(|w| w == b"PK\x01\x02").unwrap();
    lying[at + 20..at + 28].fill(0xf0);
    assert!(refused(&lying).contains("is no whole PyTorch file"));
    assert!(refused(&zipped(b"\x80\x02}", b"", zip::CompressionMethod::Stored)).contains("cut off"));
}

/// A tensor with one f32 of the storage `0`, memoised as `q\x01`.
const TENSOR: &[u8] =
    b"ctorch._utils\n_rebuild_tensor_v2\n((X\x07\0\0\0storagectorch\nFloatStorage\nX\x01\0\0\x000X\x03\0\0\0\
                        cpuK\x01tQK\0K\x01\x85K\x01\x85\x89}tRq\x01";

#[test]
fn many_names_of_one_tensor_do_not_fill_the_memory() {
    // A long name, memoised and given to each of many entries.
    let long = vec![b'n'; 10_000];
    let mut pickle = [&b"\x80\x02}(X\x10\x27\0\0"[..], &long, b"q\x02", TENSOR].concat();
    (0..5_000).for_each(|_| pickle.extend(b"h\x02h\x01"));
    pickle.extend(b"u.");
    let text = refused(&zipped(&pickle, &[0; 4], zip::CompressionMethod::Stored));
    assert!(text.contains("many times its own length"), "{text}");
}

#[test]
fn a_module_without_the_buffers_that_it_does_not_save() {
    let mut pickle =
        b"\x80\x02ctorch.nn.modules.linear\nLinear\n)\x81}(X\x08\0\0\0_modules}X\x08\0\0\0_buffers}(X\x01\0\0\0a"
            .to_vec();
    pickle.extend(TENSOR);
    pickle.extend(b"X\x01\0\0\0bh\x01X\x01\0\0\0cNuX\x1b\0\0\0_non_persistent_buffers_setc__builtin__\nset\n](X\x01\0\0\0be\x85Rub.");
    let found = read(&zipped(&pickle, &1.5f32.to_le_bytes(), zip::CompressionMethod::Stored)).unwrap();
    assert_eq!(found.len(), 1);
    assert!(found[0].0 == "a" && found[0].1.double_value(&[0]) == 1.5);
}

#[test]
fn a_child_of_many_names_with_many_empty_entries_takes_no_hours() {
    let module = |modules: &[u8], parameters: &[u8]| {
        let state = [b"(X\x08\0\0\0_modules", modules, b"X\x0b\0\0\0_parameters", parameters, b"u"].concat();
        [b"ctorch.nn.modules.linear\nLinear\n)\x81}", &state[..], b"b"].concat()
    };
    let many = |value: &[u8]| {
        let entry = |i: usize| [b"X\x04\0\0\0", format!("{i:04}").as_bytes(), value].concat();
        [b"}(", (0..3000).flat_map(entry).collect::<Vec<u8>>().as_slice(), b"u"].concat()
    };
    // The child is memoised with its first name.
    let children = [b"}(X\x01\0\0\0c", &module(b"}", &many(b"N"))[..], b"q\x07", &many(b"h\x07")[2..]].concat();
    let pickle = [b"\x80\x02", &module(&children, b"}")[..], b"."].concat();
    let text = refused(&zipped(&pickle, &[0; 4], zip::CompressionMethod::Stored));
    assert!(text.contains("its modules hold one another"), "{text}");
}

#[test]
fn a_zip_of_pytorch_whose_end_looks_like_that_of_another_is_read() {
    // torch.save({"w": torch.ones(3)}, "training-state-000123.pt") of PyTorch 2.11: names of this length bring it about.
    let found = read(include_bytes!("../../testdata/training-state-000123.pt")).unwrap();
    assert!(found.len() == 1 && found[0].0 == "w" && found[0].1.equal(&Tensor::ones([3], (Kind::Float, Device::Cpu))));
}

#[test]
fn which_of_several_networks_is_meant() {
    let network = |key: &[u8]| [&[b'X', key.len() as u8, 0, 0, 0], key, b"}X\x01\0\0\0w", TENSOR, b"s"].concat();
    let file = |keys: &[&[u8]]| {
        let pickle =
            [&b"\x80\x02}(X\x04\0\0\0stepK\x05"[..], &keys.iter().flat_map(|k| network(k)).collect::<Vec<_>>(), b"u."]
                .concat();
        zipped(&pickle, &[0; 4], zip::CompressionMethod::Stored)
    };
    assert_eq!(read(&file(&[b"state_dict"])).unwrap().len(), 1);
    assert_eq!(read(&file(&[b"net", b"ema"])).unwrap().len(), 1);
    let text = refused(&file(&[b"net", b"target"]));
    assert!(text.contains("--key") && text.contains("`net`, `target`"), "{text}");
    let path = Path::new("theirs.pt");
    assert_eq!(read_tensors(path, &file(&[b"net", b"target"]), Some("target")).unwrap().len(), 1);
    let text = read_tensors(path, &file(&[b"net"]), Some("step")).unwrap_err().to_string();
    assert!(text.contains("has no network `step`; it holds `net`"), "{text}");
}

/// A zip whose pickle was changed, with its checksum made to fit, so that what the pickle says is looked at.
fn with_pickle(change: impl FnOnce(&mut [u8])) -> Vec<u8> {
    let mut bytes = state_dict(&tensors(), "").unwrap();
    let name = b"archive/data.pkl";
    let places: Vec<usize> = (0..bytes.len() - name.len()).filter(|&i| bytes[i..].starts_with(name)).collect();
    let size = u32::from_le_bytes(bytes[places[0] - 8..places[0] - 4].try_into().unwrap()) as usize;
    let extra = usize::from(u16::from_le_bytes(bytes[places[0] - 2..places[0]].try_into().unwrap()));
    let start = places[0] + name.len() + extra;
    change(&mut bytes[start..start + size]);
    let crc = crc32(&bytes[start..start + size]).to_le_bytes();
    bytes[places[0] - 16..places[0] - 12].copy_from_slice(&crc);
    bytes[places[1] - 30..places[1] - 26].copy_from_slice(&crc);
    bytes
}

fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(u32::MAX, |crc, &b| {
        (0..8).fold(crc ^ u32::from(b), |crc, _| if crc & 1 == 1 { (crc >> 1) ^ 0xEDB8_8320 } else { crc >> 1 })
    })
}

#[test]
fn modules_that_hold_one_another_are_no_endless_walk() {
    // A module whose `_modules` hold itself by the memo.
    let cyclic =
        b"\x80\x02ctorch.nn.modules.container\nModuleDict\n)\x81q\x00}X\x08\0\0\0_modules}X\x01\0\0\0ah\x00ssb.";
    assert!(refused(cyclic).contains("its modules hold one another"));
}

proptest! {
    #[test]
    fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let _ = read(&bytes);
        let _ = read(&[b"PK\x03\x04", &bytes[..]].concat());
        let _ = read(&[b"\x80\x02", &bytes[..]].concat());
    }

    #[test]
    fn no_mutation_makes_it_panic(changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6)) {
        let change = |bytes: &mut [u8]| changes.iter().for_each(|(at, byte)| bytes[at.index(bytes.len())] = *byte);
        let mut bytes = state_dict(&tensors(), "").unwrap();
        change(&mut bytes);
        let _ = read(&bytes);
        let _ = read(&with_pickle(change));
    }
}
