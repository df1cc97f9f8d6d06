use super::*;
use std::sync::Mutex;
use std::thread;

/// What each of `size` ranks gives, in threads of this process.
fn on_ranks<T: Send>(size: usize, work: impl Fn(Group) -> T + Sync) -> Vec<T> {
    let (_store, port) = Store::serve().unwrap();
    let join = |rank| {
        let ranks = Ranks { timeout: Duration::from_secs(20), ..Ranks::of_this_machine(rank, size, port) };
        Group::join(ranks).unwrap()
    };
    let (join, work) = (&join, &work);
    thread::scope(|scope| {
        let threads: Vec<_> = (0..size).map(|rank| scope.spawn(move || work(join(rank)))).collect();
        threads.into_iter().map(|t| t.join().unwrap()).collect()
    })
}

fn floats(values: &[f32]) -> Tensor {
    Tensor::from_slice(values)
}

#[test]
fn tensors_are_summed_sent_and_gathered() {
    for size in [2, 4] {
        let found = on_ranks(size, |group| {
            let r = group.rank() as f32;
            let sum = floats(&[r, 1.0, -2.0 * r]);
            group.sum(&sum).unwrap();
            let half = floats(&[1.0 + r]).to_kind(Kind::BFloat16);
            group.sum(&half).unwrap();
            let sent = floats(&[r + 5.0, r]);
            group.broadcast(&sent).unwrap();
            let all = group.gather(&floats(&[r, 10.0 * r])).unwrap();
            assert_eq!(all.size(), [size as i64, 2]);
            let values = |t: &Tensor| Vec::<f32>::try_from(t.to_kind(Kind::Float).flatten(0, -1)).unwrap();
            (values(&sum), values(&half), values(&sent), values(&all))
        });
        let total = (0..size).sum::<usize>() as f32;
        let all: Vec<f32> = (0..size).flat_map(|r| [r as f32, 10.0 * r as f32]).collect();
        let n = size as f32;
        for rank in found {
            assert_eq!(rank, (vec![total, n, -2.0 * total], vec![total + n], vec![5.0, 0.0], all.clone()));
        }
    }
}

#[test]
fn texts_reach_all_ranks() {
    let found = on_ranks(3, |group| {
        let own = "é".repeat(group.rank());
        (group.texts(&own).unwrap(), group.told(&format!("from {}", group.rank())).unwrap())
    });
    for rank in found {
        assert_eq!(rank, (vec![String::new(), "é".into(), "éé".into()], "from 0".to_string()));
    }
}

#[test]
fn what_differs_is_said_on_all_ranks() {
    let found = on_ranks(2, |group| {
        let text = format!("a = 1\nseed = {}\n", 7 * group.rank());
        group.same("equal things", "x").unwrap();
        group.same("configurations", &text).unwrap_err().to_string()
    });
    for text in found {
        assert_eq!(
            text,
            "the ranks have different configurations: rank 0 `seed = 0`, rank 1 `seed = 7`; start all of them alike"
        );
    }
}

#[test]
fn an_error_of_one_rank_is_that_of_all() {
    let found = on_ranks(2, |group| {
        let fails = |rank| if group.rank() == rank { Err(Error::msg("no data")) } else { Ok(3) };
        assert_eq!(group.all_ok(fails(9)).unwrap(), 3);
        group.all_ok(fails(1)).unwrap_err().to_string()
    });
    assert_eq!(found, ["rank 1: no data", "no data"]);
}

#[test]
fn tasks_are_shared_and_come_in_order() {
    let rows = [2, 2, 2, 2, 1];
    let row = |task: usize, n: usize| Tensor::full([n as i64, 3], task as f64, (Kind::Float, Device::Cpu));
    for (size, at_once) in [(1, 1), (1, 2), (1, 9), (2, 1), (2, 2), (3, 1)] {
        let work = |group: Group| {
            let (computed, mut seen) = (Mutex::new(Vec::new()), Vec::new());
            let compute = |task: usize| {
                computed.lock().unwrap().push(task);
                Ok(row(task, rows[task]))
            };
            let with = |task: usize, found: Tensor| {
                assert!(found.equal(&row(task, rows[task])));
                seen.push(task);
                Ok(true)
            };
            group.in_turn(&rows, &row(0, 0), at_once, compute, with).unwrap();
            assert_eq!(seen, [0, 1, 2, 3, 4]);
            let mut computed = computed.into_inner().unwrap();
            computed.sort_unstable();
            assert_eq!(computed, (group.rank()..5).step_by(size).collect::<Vec<_>>());
            let mut before_the_end = 0;
            let last = |task, _| {
                before_the_end += 1;
                Ok(task < 2)
            };
            group.in_turn(&rows, &row(0, 0), at_once, |task| Ok(row(task, rows[task])), last).unwrap();
            assert_eq!(before_the_end, 3);
        };
        if size == 1 { work(Group::alone()) } else { drop(on_ranks(size, work)) }
    }
}

#[test]
fn a_rank_that_fails_tells_the_others_why() {
    let found = on_ranks(3, |group| {
        if group.rank() == 1 {
            return group.fail("the disk is full");
        }
        let error = group.numbers(1).unwrap_err().to_string();
        group.fail(&error)
    });
    let told = Failure::OfAnother("rank 1 ended: the disk is full".into());
    assert_eq!(found, [told.clone(), Failure::Own, told]);
}

#[test]
fn a_rank_that_ends_without_a_word_is_named() {
    let found = on_ranks(3, |group| {
        if group.rank() == 1 {
            drop(group);
            return None;
        }
        let error = group.numbers(1).unwrap_err().to_string();
        Some(group.fail(&error))
    });
    for failure in [&found[0], &found[2]] {
        let Some(Failure::OfAnother(text)) = failure else { panic!("{failure:?}") };
        assert!(text.starts_with("rank 1 is gone or does not answer (killed,"), "{text}");
    }
}

#[test]
fn a_rank_that_never_comes_is_named() {
    let (_store, port) = Store::serve().unwrap();
    let ranks = Ranks { timeout: Duration::from_millis(300), ..Ranks::of_this_machine(0, 3, port) };
    let text = Group::join(ranks.clone()).err().unwrap().to_string();
    assert!(text.starts_with("rank 1, 2 of 3 did not come to 127.0.0.1:"), "{text}");
    let nowhere = Ranks { port: 1, ..ranks };
    let text = Group::join(nowhere).err().unwrap().to_string();
    assert!(text.starts_with("rank 0 of 3 cannot reach rank 0 at 127.0.0.1:1 (MASTER_ADDR"), "{text}");
}
