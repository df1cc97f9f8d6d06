//! Groups of parameters that have coefficients of their own.

use lcsc_torch::{ParamLayout, Result, TensorSpec, bail};

/// Consecutive parameters of one group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Run {
    /// Place of the first in the flat vector.
    pub start: i64,
    /// How many.
    pub len: i64,
    /// Which group.
    pub group: usize,
}

/// Divides the P parameters of a network into G groups, each made of whole tensors.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Partition {
    names: Vec<String>,
    sizes: Vec<i64>,
    runs: Vec<Run>,
}

impl Partition {
    /// G groups of these names; `group_of` has the index of a group for each of `layout.params()`.
    ///
    /// # Errors
    /// `group_of` has another length or an index of no group, or a group has no parameters.
    pub fn new(layout: &ParamLayout, names: Vec<String>, group_of: &[usize]) -> Result<Self> {
        let params = layout.params();
        if group_of.len() != params.len() {
            bail!("{} groups for {} parameter tensors: one each is needed", group_of.len(), params.len());
        }
        if let Some((spec, group)) = params.iter().zip(group_of).find(|(_, group)| **group >= names.len()) {
            bail!("parameter `{}` is in group {group}, but there are only {} groups", spec.name, names.len());
        }
        let partition = Self::of(params, names, group_of);
        if let Some(empty) = partition.sizes.iter().position(|size| *size == 0) {
            bail!("group `{}` has no parameters", partition.names[empty]);
        }
        Ok(partition)
    }

    /// One group, `all`.
    pub fn one(layout: &ParamLayout) -> Self {
        Self::of(layout.params(), vec!["all".into()], &vec![0; layout.params().len()])
    }

    fn of(params: &[TensorSpec], names: Vec<String>, group_of: &[usize]) -> Self {
        let mut sizes = vec![0; names.len()];
        let mut runs: Vec<Run> = Vec::new();
        let mut start = 0;
        for (len, &group) in params.iter().map(TensorSpec::numel).zip(group_of) {
            match runs.last_mut() {
                Some(run) if run.group == group => run.len += len,
                _ => runs.push(Run { start, len, group }),
            }
            sizes[group] += len;
            start += len;
        }
        runs.retain(|run| run.len > 0);
        Self { names, sizes, runs }
    }

    /// G.
    pub fn len(&self) -> usize {
        self.names.len()
    }

    /// Whether there are no groups, which only a network without parameters can have.
    pub fn is_empty(&self) -> bool {
        self.names.is_empty()
    }

    /// The groups' names.
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// Parameters in each group; together P.
    pub fn sizes(&self) -> &[i64] {
        &self.sizes
    }

    /// The groups' stretches, which follow one another through the flat vector.
    pub(crate) fn runs(&self) -> &[Run] {
        &self.runs
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lcsc_torch::{Init, LayoutBuilder};
    use proptest::prelude::*;

    /// One tensor of each size, in this order.
    fn layout(sizes: &[i64]) -> ParamLayout {
        let mut b = LayoutBuilder::default();
        for (i, &size) in sizes.iter().enumerate() {
            b.param(format!("p{i:02}"), &[size], Init::Zeros);
        }
        b.finish()
    }

    fn names(n: usize) -> Vec<String> {
        (0..n).map(|i| format!("g{i}")).collect()
    }

    #[test]
    fn neighbours_of_one_group_are_one_run() {
        let layout = layout(&[3, 4, 5, 0, 6, 1]);
        let partition = Partition::new(&layout, names(2), &[1, 1, 0, 1, 0, 1]).unwrap();
        let runs: Vec<_> = partition.runs().iter().map(|r| (r.start, r.len, r.group)).collect();
        assert_eq!(runs, [(0, 7, 1), (7, 5, 0), (12, 6, 0), (18, 1, 1)]);
        assert_eq!((partition.len(), partition.names(), partition.sizes()), (2, &names(2)[..], &[11, 8][..]));
    }

    #[test]
    fn one_group_is_one_run() {
        let partition = Partition::one(&layout(&[3, 4, 5]));
        assert_eq!(partition.runs(), [Run { start: 0, len: 12, group: 0 }]);
        assert_eq!((partition.names(), partition.sizes()), (&["all".to_string()][..], &[12][..]));
    }

    #[test]
    fn what_does_not_fit_the_layout_is_refused() {
        let layout = layout(&[3, 4]);
        let refused = |n, group_of: &[usize]| Partition::new(&layout, names(n), group_of).unwrap_err().to_string();
        assert_eq!(refused(1, &[0]), "1 groups for 2 parameter tensors: one each is needed");
        assert_eq!(refused(2, &[0, 2]), "parameter `p01` is in group 2, but there are only 2 groups");
        assert_eq!(refused(3, &[0, 2]), "group `g1` has no parameters");
    }

    proptest! {
        #[test]
        fn runs_cover_each_parameter_once(tensors in prop::collection::vec((1i64..9, 0usize..3), 1..20)) {
            let (mut sizes, mut group_of): (Vec<i64>, Vec<usize>) = tensors.into_iter().unzip();
            (0..3).for_each(|group| { sizes.push(1); group_of.push(group) });
            let partition = Partition::new(&layout(&sizes), names(3), &group_of).unwrap();
            let of_runs: Vec<_> = partition.runs().iter().flat_map(|r| vec![r.group; r.len as usize]).collect();
            let of_tensors: Vec<_> = sizes.iter().zip(&group_of).flat_map(|(n, g)| vec![*g; *n as usize]).collect();
            prop_assert_eq!(of_runs, of_tensors);
            prop_assert!(partition.runs().windows(2).all(|r| r[0].group != r[1].group));
            prop_assert_eq!(partition.sizes().iter().sum::<i64>(), sizes.iter().sum::<i64>());
        }
    }
}
