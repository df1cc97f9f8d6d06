//! Each method on functions with a known optimum.

use super::*;
use crate::config::Budget;
use crate::phase::Phase;
use lcsc_torch::{Stream, rng, standard_normal};
use lcsc_trajectory::one_hot;

const OPTIMUM: [f64; 8] = [-0.4, 0.3, -0.2, 0.5, 0.1, -0.6, 0.2, 1.1];

/// A bowl over the plane Σα = 1 with its minimum of 1 at `OPTIMUM` in each group, `condition` times steeper along the last
/// coefficient than along the first.
fn bowl(alpha: &Coefficients, condition: f64) -> f64 {
    let steep = |i: usize| condition.powf(i as f64 / 7.0);
    let row =
        |row: &Vec<f64>| row.iter().zip(OPTIMUM).enumerate().map(|(i, (a, o))| steep(i) * (a - o).powi(2)).sum::<f64>();
    1.0 + alpha.rows().iter().map(row).sum::<f64>() / alpha.groups() as f64
}

fn bowl_gradient(alpha: &Coefficients, condition: f64) -> Vec<Vec<f64>> {
    let scale = 2.0 / alpha.groups() as f64;
    let slope = |(i, (a, o)): (usize, (&f64, f64))| scale * condition.powf(i as f64 / 7.0) * (a - o);
    alpha.rows().iter().map(|row| row.iter().zip(OPTIMUM).enumerate().map(slope).collect()).collect()
}

fn evaluation(candidate: Candidate, name: MethodName, fd: f64, gradient: Option<Vec<Vec<f64>>>) -> Evaluation {
    let scores = crate::score::Scores::of(fd);
    Evaluation { candidate, worker: 0, phase: Phase::Search(name), images: 1, scores, gradient, seconds: 0.0 }
}

/// The eight checkpoints alone, scored.
fn one_hots(score: &dyn Fn(&Coefficients) -> f64) -> Vec<Evaluation> {
    let one = |i: usize| {
        let alpha = Coefficients::one(one_hot(8, i)).unwrap();
        let fd = score(&alpha);
        let candidate = Candidate { id: i as u64, origin: Origin::Uniform, model: Model::Coefficients(alpha) };
        Evaluation { phase: Phase::Baseline, ..evaluation(candidate, MethodName::EmaGrid, fd, None) }
    };
    (0..8).map(one).collect()
}

fn begin(
    name: MethodName,
    config: &SearchConfig,
    groups: usize,
    seed: u64,
    score: &dyn Fn(&Coefficients) -> f64,
) -> Method {
    let known = one_hots(score);
    let known: Vec<&Evaluation> = known.iter().collect();
    Method::new(name, &Beginning { config, seed, first_id: 8, nfe: 1, groups, known: &known }).unwrap().unwrap()
}

fn alpha_of(candidate: &Candidate) -> Coefficients {
    match &candidate.model {
        Model::Coefficients(alpha) => alpha.clone(),
        Model::Track(_) | Model::Finetuned => panic!("{candidate:?}"),
    }
}

/// Asks and tells `n` times; the best candidate's true score, or for chains of steps the last one's.
fn solve(
    name: MethodName,
    method: &mut Method,
    n: u64,
    truth: &dyn Fn(&Coefficients) -> f64,
    noisy: &dyn Fn(&Coefficients, u64) -> f64,
    gradient: &dyn Fn(&Coefficients, u64) -> Vec<Vec<f64>>,
) -> f64 {
    let mut best = (f64::INFINITY, f64::INFINITY);
    for id in 8..8 + n {
        let candidate = method.ask(id).unwrap().unwrap();
        let alpha = alpha_of(&candidate);
        let fd = noisy(&alpha, id);
        if name == MethodName::Gradient || fd < best.0 {
            best = (fd, truth(&alpha));
        }
        let gradient = (name == MethodName::Gradient).then(|| gradient(&alpha, id));
        method.tell(&evaluation(candidate, name, fd, gradient), (id - 8) as f64 / n as f64).unwrap();
    }
    best.1
}

/// What is left of the distance to the optimum after `n` evaluations of an exact score, on the worst of three seeds.
fn remaining(name: MethodName, config: &SearchConfig, groups: usize, condition: f64, n: u64) -> f64 {
    let score = |alpha: &Coefficients| bowl(alpha, condition);
    let solve = |seed| {
        let mut method = begin(name, config, groups, seed, &score);
        solve(name, &mut method, n, &score, &|a, _| score(a), &|a, _| bowl_gradient(a, condition)) - 1.0
    };
    (0..3).map(solve).fold(0.0, f64::max)
}

#[test]
fn every_method_finds_the_optimum_of_a_bowl() {
    let config = SearchConfig::default();
    // The best checkpoint is at 1.0 + 1.9; what is left of the 1.9 after so many evaluations.
    assert!(remaining(MethodName::Gradient, &config, 1, 1.0, 120) < 1e-3);
    assert!(remaining(MethodName::CmaEs, &config, 1, 1.0, 400) < 1e-3);
    assert!(remaining(MethodName::OnePlusOne, &config, 1, 1.0, 300) < 1e-3);
    assert!(remaining(MethodName::Evolution, &config, 1, 1.0, 400) < 0.15);
    assert!(remaining(MethodName::Evolution, &config, 1, 1.0, 2000) < 5e-3);
}

#[test]
fn every_method_works_in_groups() {
    let config = SearchConfig::default();
    assert!(remaining(MethodName::Gradient, &config, 3, 1.0, 120) < 1e-3);
    assert!(remaining(MethodName::CmaEs, &config, 3, 1.0, 1200) < 1e-3);
    assert!(remaining(MethodName::OnePlusOne, &config, 3, 1.0, 1000) < 1e-3);
    assert!(remaining(MethodName::Evolution, &config, 3, 1.0, 2000) < 0.05);
}

#[test]
fn methods_that_adapt_solve_an_ill_conditioned_bowl() {
    let config = SearchConfig::default();
    let adapted = remaining(MethodName::CmaEs, &config, 1, 1e4, 3000);
    let steps = remaining(MethodName::Gradient, &config, 1, 1e4, 1000);
    assert!(adapted < 1e-3 && steps < 0.1, "{adapted} {steps}");
}

#[test]
fn noise_does_not_lead_astray() {
    let score = |alpha: &Coefficients| bowl(alpha, 1.0);
    let draw = |id: u64| standard_normal(&mut rng(5, Stream::Search, id));
    let noisy = |alpha: &Coefficients, id: u64| score(alpha) + 0.05 * draw(id);
    let gradient = |alpha: &Coefficients, id: u64| {
        let mut g = bowl_gradient(alpha, 1.0);
        g[0].iter_mut().enumerate().for_each(|(i, g)| *g += 0.5 * draw(100 * id + i as u64));
        g
    };
    let config = SearchConfig::default();
    for (name, n, bound) in [(MethodName::Gradient, 150, 0.03), (MethodName::CmaEs, 600, 0.1)] {
        for seed in 0..3 {
            let mut method = begin(name, &config, 1, seed, &score);
            let left = solve(name, &mut method, n, &score, &noisy, &gradient) - 1.0;
            assert!(left < bound, "{} seed {seed}: {left}", name.name());
        }
    }
}

#[test]
fn candidates_stay_on_the_plane_and_methods_survive_json() {
    let score = |alpha: &Coefficients| if alpha.rows()[0][3] > 0.9 { f64::NAN } else { bowl(alpha, 3.0) };
    let config = SearchConfig::default();
    for name in [MethodName::Evolution, MethodName::OnePlusOne, MethodName::CmaEs, MethodName::Gradient] {
        let mut method = begin(name, &config, 2, 4, &score);
        let mut log = Vec::new();
        for id in 8..70 {
            let candidate = method.ask(id).unwrap().unwrap();
            let alpha = alpha_of(&candidate);
            assert!(alpha.rows().iter().all(|row| (row.iter().sum::<f64>() - 1.0).abs() < 1e-12), "{}", name.name());
            let gradient = (name == MethodName::Gradient).then(|| bowl_gradient(&alpha, 3.0));
            let e = evaluation(candidate, name, score(&alpha), gradient);
            method.tell(&e, (id - 8) as f64 / 62.0).unwrap();
            log.push(e);
        }
        let json = serde_json::to_string(&method).unwrap();
        assert_eq!(serde_json::from_str::<Method>(&json).unwrap(), method, "{}", name.name());

        // Telling the logged scores again restores the method.
        let mut told = begin(name, &config, 2, 4, &score);
        for (i, e) in log.iter().enumerate() {
            told.tell(e, i as f64 / 62.0).unwrap();
        }
        assert_eq!(told, method, "{}", name.name());
        assert_eq!(told.ask(70).unwrap(), method.ask(70).unwrap());
    }
}

#[test]
fn chains_and_generations_wait_for_their_scores() {
    let score = |alpha: &Coefficients| bowl(alpha, 1.0);
    let config = SearchConfig::default();
    for name in [MethodName::OnePlusOne, MethodName::Gradient, MethodName::Finetune] {
        let method = begin(name, &config, 1, 0, &score);
        assert!(method.ask(8).unwrap().is_some() && method.ask(9).unwrap().is_none(), "{}", name.name());
    }
    let method = begin(MethodName::CmaEs, &config, 1, 0, &score);
    // λ = 4 + ⌊3 ln 7⌋ = 9
    assert!(method.ask(16).unwrap().is_some() && method.ask(17).unwrap().is_none());
    assert!(begin(MethodName::Evolution, &config, 1, 0, &score).ask(800).unwrap().is_some());
}

#[test]
fn a_batch_of_the_evolution_comes_from_one_population() {
    let score = |alpha: &Coefficients| bowl(alpha, 1.0);
    let evolution = EvolutionConfig { batch: 4, ..EvolutionConfig::default() };
    let config = SearchConfig { evolution, ..SearchConfig::default() };
    let mut method = begin(MethodName::Evolution, &config, 1, 0, &score);
    assert_eq!((method.most(8), method.most(10)), (4, 2));
    let ask = |method: &Method| (8..12).map(|id| method.ask(id).unwrap().unwrap()).collect::<Vec<_>>();
    let batch = ask(&method);
    for candidate in &batch[..2] {
        method.tell(&evaluation(candidate.clone(), MethodName::Evolution, 0.0, None), 0.0).unwrap();
    }
    assert_eq!(ask(&method), batch);
    assert!(method.ask(12).unwrap().is_some());
}

#[test]
fn penalties_pull_towards_small_coefficients_and_the_start() {
    let score = |alpha: &Coefficients| bowl(alpha, 1.0);
    let end = |penalty| {
        let config = SearchConfig { penalty, ..SearchConfig::default() };
        let mut method = begin(MethodName::Gradient, &config, 2, 0, &score);
        solve(MethodName::Gradient, &mut method, 200, &score, &|a, _| score(a), &|a, _| bowl_gradient(a, 1.0));
        alpha_of(&method.ask(208).unwrap().unwrap())
    };
    let free = end(Penalty::default());
    // min |a − o|² + s·a² on the plane: a = (o + s/8)/(1 + s), as Σo = 1.
    let small = end(Penalty { square: 1.0, distance: 0.0 });
    // min |a − o|² + d·|a − e|² with e the best checkpoint, the last one: a = (o + d·e)/(1 + d).
    let near = end(Penalty { square: 0.0, distance: 1.0 });
    for g in 0..2 {
        for (i, optimum) in OPTIMUM.into_iter().enumerate() {
            let start = if i == 7 { 1.0 } else { 0.0 };
            assert!((free.rows()[g][i] - optimum).abs() < 0.02, "{free:?}");
            assert!((small.rows()[g][i] - (optimum + 0.125) / 2.0).abs() < 0.02, "{small:?}");
            assert!((near.rows()[g][i] - (optimum + start) / 2.0).abs() < 0.02, "{near:?}");
        }
    }
    let objective = Objective::new(Penalty { square: 2.0, distance: 3.0 }, Coefficients::one(vec![0.0, 1.0]).unwrap());
    let alpha = Coefficients::one(vec![0.5, 0.5]).unwrap();
    assert_eq!(objective.score(&alpha, 1.0), 1.0 + 2.0 * 0.5 + 3.0 * 0.5);
    assert_eq!(objective.score(&alpha, f64::NAN), f64::INFINITY);
}

#[test]
fn a_parent_is_judged_by_its_own_penalised_score() {
    let score = |alpha: &Coefficients| bowl(alpha, 1.0);
    let config = SearchConfig { penalty: Penalty { square: 1.0, distance: 0.0 }, ..SearchConfig::default() };
    let mut method = begin(MethodName::OnePlusOne, &config, 1, 0, &score);
    let penalised = |alpha: &Coefficients| score(alpha) + alpha.rows()[0].iter().map(|a| a * a).sum::<f64>();
    solve(MethodName::OnePlusOne, &mut method, 300, &score, &|a, _| score(a), &|a, _| bowl_gradient(a, 1.0));
    // The minimum on the plane, at (o + 1/8)/2, is 1 + Σ(a − o)² + Σa² = 2.1425.
    let Method::OnePlusOne(_) = &method else { panic!("{method:?}") };
    let child = alpha_of(&method.ask(308).unwrap().unwrap());
    assert!(penalised(&child) < 2.2, "{}", penalised(&child));
}

#[test]
fn a_gradient_that_is_not_finite_moves_nothing() {
    let score = |alpha: &Coefficients| bowl(alpha, 1.0);
    let mut method = begin(MethodName::Gradient, &SearchConfig::default(), 1, 0, &score);
    let before = alpha_of(&method.ask(8).unwrap().unwrap());
    let e =
        evaluation(method.ask(8).unwrap().unwrap(), MethodName::Gradient, f64::INFINITY, Some(vec![vec![f64::NAN; 8]]));
    method.tell(&e, 0.0).unwrap();
    assert_eq!(alpha_of(&method.ask(9).unwrap().unwrap()), before);
    let text = method.tell(&Evaluation { gradient: None, ..e }, 0.0).unwrap_err().to_string();
    assert_eq!(text, "candidate 8 has no gradient");
}

#[test]
fn the_rate_falls_with_the_evaluations_and_along_a_cosine() {
    assert_eq!(rate(0.03, 1, 0.0), 0.03);
    assert_eq!(rate(0.03, 9, 0.0), 0.01);
    assert!((rate(0.03, 1, 0.5) - 0.015).abs() < 1e-12 && rate(0.03, 1, 1.5).abs() < 1e-12);
}

#[test]
fn names_are_those_of_the_config() {
    for name in MethodName::ALL {
        assert_eq!(serde_json::to_value(name).unwrap(), name.name());
        assert_eq!(name.name().parse(), Ok(name));
    }
    assert!("annealing".parse::<MethodName>().unwrap_err().contains("expected one of ema-grid, evolution"));
    assert_eq!(Budget::default().fraction(Default::default()), 0.0);
}
