//! Which parameters share coefficients.

use crate::config::{Groups, SearchConfig};
use lcsc_torch::{ParamLayout, Result, bail};
use lcsc_trajectory::Partition;
use lcsc_unet::level_groups;
use wildmatch::WildMatch;

/// The groups that a search's coefficients may differ between: those of its methods that have groups, else one.
pub fn groups_of(config: &SearchConfig) -> Groups {
    let mut groups = config.searching().into_iter().map(|method| config.groups(method));
    groups.find(|g| *g != Groups::One).unwrap_or(Groups::One)
}

/// The parameters of each group.
///
/// # Errors
/// A tensor's name fits no level, or a pattern fits no tensor.
pub fn partition(groups: &Groups, layout: &ParamLayout) -> Result<Partition> {
    match groups {
        Groups::One => Ok(Partition::one(layout)),
        Groups::Levels => {
            let (names, group_of) = level_groups(layout)?;
            Partition::new(layout, names, &group_of)
        }
        Groups::Patterns(patterns) => by_patterns(layout, patterns),
    }
}

/// A group for each pattern, of the tensors that it is the first to fit, and one of the rest where there are any.
fn by_patterns(layout: &ParamLayout, patterns: &[String]) -> Result<Partition> {
    let matchers: Vec<WildMatch> = patterns.iter().map(|p| WildMatch::new(p)).collect();
    let rest = patterns.len();
    let first_fit = |name: &str| matchers.iter().position(|m| m.matches(name)).unwrap_or(rest);
    let group_of: Vec<usize> = layout.params().iter().map(|p| first_fit(&p.name)).collect();
    if let Some(pattern) = (0..rest).find(|g| !group_of.contains(g)) {
        bail!(
            "pattern `{}` fits no tensor that no pattern before it fits; names are such as `{}`",
            patterns[pattern],
            layout.params().first().map_or("", |p| p.name.as_str())
        );
    }
    let mut names = patterns.to_vec();
    if group_of.contains(&rest) {
        names.push("rest".into());
    }
    Partition::new(layout, names, &group_of)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::MethodName;
    use lcsc_unet::{ImageShape, SongUNet, SongUNetConfig};

    fn layout() -> ParamLayout {
        SongUNet::new(&SongUNetConfig::tiny(), ImageShape { channels: 1, resolution: 8, label_dim: 0 }, 1).1
    }

    fn names(groups: Option<Groups>, method: &[MethodName]) -> Result<Vec<String>> {
        let config = SearchConfig { groups, method: method.to_vec(), ..SearchConfig::default() };
        Ok(partition(&groups_of(&config), &layout())?.names().to_vec())
    }

    #[test]
    fn groups_follow_the_methods() {
        assert_eq!(names(None, &[MethodName::EmaGrid, MethodName::Gradient]).unwrap().len(), 6);
        assert_eq!(names(None, &[MethodName::Evolution]).unwrap(), ["all"]);
        assert_eq!(names(None, &[MethodName::Evolution, MethodName::Gradient]).unwrap().len(), 6);
        assert_eq!(names(Some(Groups::One), &[MethodName::Gradient]).unwrap(), ["all"]);
    }

    #[test]
    fn patterns_split_by_name() {
        let patterns = |p: &[&str]| Some(Groups::Patterns(p.iter().map(|p| p.to_string()).collect()));
        let split = names(patterns(&["model.enc.*", "model.dec.*"]), &[MethodName::CmaEs]).unwrap();
        assert_eq!(split, ["model.enc.*", "model.dec.*", "rest"]);
        let text = names(patterns(&["*", "model.enc.*"]), &[MethodName::CmaEs]).unwrap_err().to_string();
        assert!(text.contains("`model.enc.*` fits no tensor") && text.contains("model.dec."), "{text}");
    }
}
