//! Class labels: from EDM's `dataset.json`, or from the names of sub-folders.

use lcsc_torch::{Error, Result, bail};
use serde::Deserialize;
use std::collections::{BTreeSet, HashMap};

/// The file that holds the labels.
pub(crate) const INDEX: &str = "dataset.json";

/// More classes than any dataset has: labels beyond are slips, and a network for so many would exhaust the memory.
const MAX_CLASSES: i64 = 100_000;

/// Refuses classes that are none, or what is wrong with them.
pub(crate) fn check(classes: &[i64]) -> std::result::Result<(), String> {
    match classes.iter().position(|class| !(0..MAX_CLASSES).contains(class)) {
        None => Ok(()),
        Some(i) => Err(format!("image {i} has class {}, expected classes 0, 1, … below {MAX_CLASSES}", classes[i])),
    }
}

#[derive(Deserialize)]
struct Index {
    labels: Option<Vec<(String, u32)>>,
}

/// The class of each image as `dataset.json` says, or none where its `labels` are null.
///
/// # Errors
/// It is no such file, names an image twice or a missing one, or lacks one.
pub(crate) fn from_index(json: &[u8], names: &[String]) -> Result<Option<Vec<i64>>> {
    let index: Index = serde_json::from_slice(json).map_err(|e| {
        let expected = r#"expected {"labels": [["name", class], …]} with classes 0, 1, …, or {"labels": null}"#;
        Error::msg(format!("`{INDEX}`: {e}; {expected}"))
    })?;
    let Some(labels) = index.labels else { return Ok(None) };
    let mut classes = HashMap::with_capacity(labels.len());
    for (name, class) in &labels {
        if classes.insert(name.as_str(), i64::from(*class)).is_some() {
            bail!("`{INDEX}` labels `{name}` twice: keep one of the two");
        }
    }
    let take = |name: &String| {
        classes.remove(name.as_str()).ok_or_else(|| {
            Error::msg(format!("`{INDEX}` has no label for `{name}`: add it, or read no labels (data.labels = false)"))
        })
    };
    let found = names.iter().map(take).collect::<Result<Vec<_>>>()?;
    if let Some(name) = classes.keys().min() {
        let others = classes.len() - 1;
        bail!(
            "`{INDEX}` labels `{name}` (and {others} more), which is no png or jpeg here: restore it or drop the label"
        );
    }
    check(&found).map_err(|e| Error::msg(format!("`{INDEX}`: {e}")))?;
    Ok(Some(found))
}

/// The class of each image as its sub-folder says: sorted, the sub-folders are classes 0, 1, …; none in a flat folder.
///
/// # Errors
/// Images lie both in the folder itself and in sub-folders.
pub(crate) fn from_folders(names: &[String]) -> Result<Option<Vec<i64>>> {
    let folder_of = |name: &'_ String| name.find('/').map(|end| name[..end].to_string());
    let folders: Vec<Option<String>> = names.iter().map(folder_of).collect();
    let sorted: Vec<&String> = folders.iter().flatten().collect::<BTreeSet<_>>().into_iter().collect();
    if sorted.is_empty() {
        return Ok(None);
    }
    if let Some(flat) = folders.iter().position(Option::is_none) {
        bail!(
            "`{}` lies beside the sub-folder `{}`: put every image into the sub-folder of its class, or read no labels \
             (data.labels = false)",
            names[flat],
            sorted[0]
        );
    }
    let class = |folder: &String| sorted.partition_point(|other| *other < folder) as i64;
    Ok(Some(folders.iter().flatten().map(class).collect()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(|n| n.to_string()).collect()
    }

    fn index_error(json: &str) -> String {
        from_index(json.as_bytes(), &names(&["a.png", "b.png"])).unwrap_err().to_string()
    }

    #[test]
    fn the_index_gives_classes_by_name() {
        let json = br#"{"labels": [["b.png", 0], ["a.png", 7]], "other": 1}"#;
        assert_eq!(from_index(json, &names(&["a.png", "b.png"])).unwrap().unwrap(), [7, 0]);
        assert!(from_index(br#"{"labels": null}"#, &names(&["a.png"])).unwrap().is_none());
    }

    #[test]
    fn an_index_that_does_not_fit_is_refused() {
        let text = index_error(r#"{"labels": [["a.png", 0]]}"#);
        assert!(text.contains("no label for `b.png`") && text.contains("data.labels = false"), "{text}");
        let text = index_error(r#"{"labels": [["a.png", 0], ["b.png", 0], ["c.png", 1]]}"#);
        assert!(text.contains("labels `c.png`"), "{text}");
        let text = index_error(r#"{"labels": [["a.png", 0], ["a.png", 1], ["b.png", 1]]}"#);
        assert!(text.contains("`a.png` twice"), "{text}");
        let text = index_error(r#"{"labels": [["a.png", -1], ["b.png", 1]]}"#);
        assert!(text.contains("integer `-1`") && text.contains("expected {\"labels\""), "{text}");
    }

    #[test]
    fn sub_folders_are_classes_in_the_order_of_their_names() {
        // By whole path `a-b/…` comes before `a/…`; by folder it is the other way round.
        let sorted = names(&["a-b/1.png", "a/1.png", "a/deep/2.png", "c/1.png"]);
        assert_eq!(from_folders(&sorted).unwrap().unwrap(), [1, 0, 0, 2]);
        assert!(from_folders(&names(&["1.png", "2.png"])).unwrap().is_none());
        let text = from_folders(&names(&["1.png", "a/2.png"])).unwrap_err().to_string();
        assert!(text.contains("`1.png` lies beside the sub-folder `a`"), "{text}");
    }
}
