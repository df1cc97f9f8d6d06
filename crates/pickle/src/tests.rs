use crate::numpy::Array;
use crate::{Error, Node, Pickle};
use proptest::prelude::*;

/// `{"a": [1, -2, 300, 70000, 2**40, 1.5, None, True, False], "t": (1, (2,), ()), "u": "é"}` of CPython 3.12, by protocol.
const VALUES: [&[u8]; 4] = [
    b"(dp0\nVa\np1\n(lp2\nI1\naI-2\naI300\naI70000\naL1099511627776L\naF1.5\naNaI01\naI00\nasVt\np3\n(I1\n(I2\ntp4\n\
      (ttp5\nsVu\np6\nV\xc3\xa9\np7\ns.",
    b"\x80\x02}q\x00(X\x01\x00\x00\x00aq\x01]q\x02(K\x01J\xfe\xff\xff\xffM,\x01Jp\x11\x01\x00\x8a\x06\x00\x00\x00\x00\x00\
      \x01G?\xf8\x00\x00\x00\x00\x00\x00N\x88\x89eX\x01\x00\x00\x00tq\x03K\x01K\x02\x85q\x04)\x87q\x05X\x01\x00\x00\x00uq\x06\
      X\x02\x00\x00\x00\xc3\xa9q\x07u.",
    b"\x80\x04\x95O\x00\x00\x00\x00\x00\x00\x00}\x94(\x8c\x01a\x94]\x94(K\x01J\xfe\xff\xff\xffM,\x01Jp\x11\x01\x00\x8a\x06\
      \x00\x00\x00\x00\x00\x01G?\xf8\x00\x00\x00\x00\x00\x00N\x88\x89e\x8c\x01t\x94K\x01K\x02\x85\x94)\x87\x94\x8c\x01u\x94\
      \x8c\x02\xc3\xa9\x94u.",
    // Python 2: text is bytes.
    b"\x80\x02}q\x00(U\x01a]q\x01(K\x01J\xfe\xff\xff\xffM,\x01Jp\x11\x01\x00\x8a\x06\x00\x00\x00\x00\x00\x01G?\xf8\x00\x00\
      \x00\x00\x00\x00N\x88\x89eU\x01tK\x01K\x02\x85)\x87U\x01uU\x02\xc3\xa9u.",
];

/// `{"d": arange(6, dtype=uint8).reshape(2, 3), "s": float64(1.5)}` of NumPy 2.4, protocols 2, 4 and 5.
const ARRAYS: [&[u8]; 3] = [
    b"\x80\x02}q\x00(X\x01\x00\x00\x00dq\x01cnumpy._core.multiarray\n_reconstruct\nq\x02cnumpy\nndarray\nq\x03K\x00\x85q\x04\
      c_codecs\nencode\nq\x05X\x01\x00\x00\x00bq\x06X\x06\x00\x00\x00latin1q\x07\x86q\x08Rq\t\x87q\nRq\x0b(K\x01K\x02K\x03\x86\
      q\x0ccnumpy\ndtype\nq\rX\x02\x00\x00\x00u1q\x0e\x89\x88\x87q\x0fRq\x10(K\x03X\x01\x00\x00\x00|q\x11NNNJ\xff\xff\xff\xffJ\
      \xff\xff\xff\xffK\x00tq\x12b\x89h\x05X\x06\x00\x00\x00\x00\x01\x02\x03\x04\x05q\x13h\x07\x86q\x14Rq\x15tq\x16bX\x01\x00\
      \x00\x00sq\x17cnumpy._core.multiarray\nscalar\nq\x18h\rX\x02\x00\x00\x00f8q\x19\x89\x88\x87q\x1aRq\x1b(K\x03X\x01\x00\
      \x00\x00<q\x1cNNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tq\x1dbh\x05X\t\x00\x00\x00\x00\x00\x00\x00\x00\x00\xc3\xb8?q\x1e\
      h\x07\x86q\x1fRq \x86q!Rq\"u.",
    b"\x80\x04\x95\xdf\x00\x00\x00\x00\x00\x00\x00}\x94(\x8c\x01d\x94\x8c\x16numpy._core.multiarray\x94\x8c\x0c_reconstruct\
      \x94\x93\x94\x8c\x05numpy\x94\x8c\x07ndarray\x94\x93\x94K\x00\x85\x94C\x01b\x94\x87\x94R\x94(K\x01K\x02K\x03\x86\x94h\x05\
      \x8c\x05dtype\x94\x93\x94\x8c\x02u1\x94\x89\x88\x87\x94R\x94(K\x03\x8c\x01|\x94NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00\
      t\x94b\x89C\x06\x00\x01\x02\x03\x04\x05\x94t\x94b\x8c\x01s\x94h\x02\x8c\x06scalar\x94\x93\x94h\x0e\x8c\x02f8\x94\x89\x88\
      \x87\x94R\x94(K\x03\x8c\x01<\x94NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00t\x94bC\x08\x00\x00\x00\x00\x00\x00\xf8?\x94\
      \x86\x94R\x94u.",
    b"\x80\x05\x95\xe1\x00\x00\x00\x00\x00\x00\x00}\x94(\x8c\x01d\x94\x8c\x13numpy._core.numeric\x94\x8c\x0b_frombuffer\x94\
      \x93\x94(\x96\x06\x00\x00\x00\x00\x00\x00\x00\x00\x01\x02\x03\x04\x05\x94\x8c\x05numpy\x94\x8c\x05dtype\x94\x93\x94\x8c\
      \x02u1\x94\x89\x88\x87\x94R\x94(K\x03\x8c\x01|\x94NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00t\x94bK\x02K\x03\x86\x94\x8c\
      \x01C\x94t\x94R\x94\x8c\x01s\x94\x8c\x16numpy._core.multiarray\x94\x8c\x06scalar\x94\x93\x94h\x08\x8c\x02f8\x94\x89\x88\
      \x87\x94R\x94(K\x03\x8c\x01<\x94NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00t\x94bC\x08\x00\x00\x00\x00\x00\x00\xf8?\x94\
      \x86\x94R\x94u.",
];

fn refusal(input: &[u8]) -> String {
    Pickle::parse(input).unwrap_err().to_string()
}

#[test]
fn every_protocol_gives_the_same_values() {
    for file in VALUES {
        let mut followed = file.to_vec();
        followed.extend(b"another pickle");
        let pickle = Pickle::parse(&followed).unwrap();
        assert_eq!(pickle.length(), file.len());
        let root = pickle.root();
        let list = pickle.tuple(pickle.get(root, "a").unwrap()).unwrap();
        let nodes: Vec<Node> = list.iter().map(|&id| pickle.node(id).clone()).collect();
        let ints = [1, -2, 300, 70_000, 1 << 40].map(Node::Int);
        assert_eq!(nodes[..5], ints);
        assert_eq!(nodes[5..], [Node::Float(1.5), Node::None, Node::Bool(true), Node::Bool(false)]);
        let &[one, pair, empty] = pickle.tuple(pickle.get(root, "t").unwrap()).unwrap() else { panic!("no triple") };
        assert_eq!(pickle.int(one), Ok(1));
        assert_eq!(pickle.int(pickle.tuple(pair).unwrap()[0]), Ok(2));
        assert_eq!(pickle.tuple(empty), Ok(&[][..]));
        assert_eq!(pickle.text(pickle.get(root, "u").unwrap()), Ok("é"));
    }
}

#[test]
fn arrays_and_scalars_of_numpy() {
    for file in ARRAYS {
        let pickle = Pickle::parse(file).unwrap();
        let read = |key| Array::read(&pickle, pickle.get(pickle.root(), key).unwrap()).unwrap();
        let (array, scalar) = (read("d"), read("s"));
        assert_eq!((array.shape, array.dtype.as_str()), (vec![2, 3], "u1"));
        assert_eq!(*array.bytes, [0, 1, 2, 3, 4, 5]);
        assert_eq!((scalar.shape.len(), scalar.to_f64()), (0, Ok(vec![1.5])));
        assert!(Array::read(&pickle, pickle.root()).unwrap_err().to_string().contains("found no object"));
    }
}

#[test]
fn an_array_of_another_size_than_its_bytes_is_refused() {
    let mut file = ARRAYS[1].to_vec();
    let axes = file.windows(4).position(|w| w == b"K\x02K\x03").unwrap();
    file[axes + 1] = 200;
    let pickle = Pickle::parse(&file).unwrap();
    let text = Array::read(&pickle, pickle.get(pickle.root(), "d").unwrap()).unwrap_err().to_string();
    assert!(text.contains("[200, 3]") && text.contains("6 bytes"), "{text}");
}

#[test]
fn names_outside_the_list_are_refused_by_name() {
    for file in [
        &b"cos\nsystem\n(S'x'\ntR."[..],
        b"\x80\x02cposix\nsystem\nq\x00.",
        b"\x80\x04\x95\x14\x00\x00\x00\x00\x00\x00\x00\x8c\x05posix\x94\x8c\x06system\x94\x93\x94.",
        b"cbuiltins\neval\n.",
        b"ctorch\nload\n.",
    ] {
        let text = refusal(file);
        assert!(text.contains("system`") || text.contains("eval`") || text.contains("torch.load`"), "{text}");
        assert!(text.contains("refused"), "{text}");
    }
}

#[test]
fn opcodes_that_data_does_not_need_are_refused_with_their_place() {
    for code in [b'i', b'o', b'P', 0x82, 0x83, 0x84, 0x97, 0x98, 0x00, 0xff] {
        assert_eq!(Pickle::parse(&[0x80, 2, code, b'x']).unwrap_err(), Error::Opcode { code, at: 2 });
    }
}

#[test]
fn every_prefix_is_cut_off() {
    for file in VALUES.iter().chain(&ARRAYS) {
        for end in 0..file.len() {
            assert!(refusal(&file[..end]).contains("cut off"), "{end}");
        }
    }
}

#[test]
fn what_does_not_fit_together_is_damaged() {
    for (file, what) in [
        (&b"0."[..], "the stack is empty"),
        (b".", "the stack is empty"),
        (b"h\x05.", "memo 5 is empty"),
        (b"t.", "no mark"),
        (b"(0.", "the stack is empty"),
        (b"K\x01(0.", "a mark lies"),
        (b"K\x01\x86.", "a tuple of more"),
        (b"}(K\x01u.", "a key without value"),
        (b"K\x01K\x02a.", "no container"),
        (b"K\x01)R.", "a call of what is no class"),
        (b"K\x01}b.", "state for what is no object"),
        (b"Ix\n.", "`x` is no value"),
        (b"X\x01\x00\x00\x00\xff.", "not UTF-8"),
    ] {
        let text = refusal(file);
        assert!(text.contains(what), "{text}");
    }
    // Lengths beyond the end, up to the largest that can be written.
    for file in
        [&b"\x8e\xff\xff\xff\xff\xff\xff\xff\xff"[..], b"B\xff\xff\xff\xff", b"\x8b\xff\xff\xff\xff", b"\x95\x01"]
    {
        assert_eq!(Pickle::parse(file).unwrap_err(), Error::CutOff(file.len()));
    }
}

#[test]
fn cycles_and_depth_do_no_harm() {
    let pickle = Pickle::parse(b"\x80\x02]q\x00h\x00a.").unwrap();
    assert_eq!(pickle.tuple(pickle.root()), Ok(&[pickle.root()][..]));
    const DEPTH: usize = 1_000_000;
    let mut file = vec![b')'];
    file.extend([0x85].repeat(DEPTH));
    file.push(b'.');
    assert_eq!(Pickle::parse(&file).unwrap().nodes().len(), DEPTH + 1);
}

proptest! {
    #[test]
    fn random_bytes_neither_panic_nor_take_much(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        if let Ok(pickle) = Pickle::parse(&bytes) {
            prop_assert!(pickle.nodes().len() <= bytes.len());
        }
    }

    #[test]
    fn changed_files_neither_panic_nor_take_much(
        which in 0..ARRAYS.len(),
        changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
    ) {
        let mut file = ARRAYS[which].to_vec();
        for (place, byte) in changes {
            let place = place.index(file.len());
            file[place] = byte;
        }
        if let Ok(pickle) = Pickle::parse(&file) {
            prop_assert!(pickle.nodes().len() <= file.len());
            for key in ["d", "s"] {
                let _ = pickle.get(pickle.root(), key).map(|id| Array::read(&pickle, id));
            }
        }
    }
}
