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
    let found = read(&state_dict(&tensors()).unwrap()).unwrap();
    assert_eq!(found.len(), 3);
    for ((name, tensor), (expected_name, expected)) in found.iter().zip(tensors()) {
        assert!(*name == expected_name && tensor.equal(&expected) && tensor.size() == expected.size(), "{name}");
    }
}

#[test]
fn wrapped_names_lose_their_prefix_only_where_all_have_it() {
    let wrapped = |prefix: [&str; 2]| {
        let named = prefix.iter().zip(tensors()).map(|(p, (name, t))| (format!("{p}{name}"), t)).collect::<Vec<_>>();
        let found = read(&state_dict(&named).unwrap()).unwrap();
        found.into_iter().map(|(name, _)| name).collect::<Vec<_>>()
    };
    assert_eq!(wrapped(["module.", "module."]), ["b.weight", "a.bias"]);
    assert_eq!(wrapped(["module.", ""]), ["module.b.weight", "a.bias"]);
}

#[test]
fn every_truncation_is_an_error() {
    let whole = state_dict(&tensors()[..1]).unwrap();
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
    for huge in [3, 1 << 40, i64::MAX, -2] {
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

/// A zip whose pickle was changed, with its checksum made to fit, so that what the pickle says is looked at.
fn with_pickle(change: impl FnOnce(&mut [u8])) -> Vec<u8> {
    let mut bytes = state_dict(&tensors()).unwrap();
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
        let mut bytes = state_dict(&tensors()).unwrap();
        change(&mut bytes);
        let _ = read(&bytes);
        let _ = read(&with_pickle(change));
    }
}
