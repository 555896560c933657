//! What the fuzz targets hold, held here for the inputs that are kept: seeds, and whatever was once found.

#[expect(unreachable_pub, reason = "the fuzz targets see them from outside")]
#[path = "../fuzz/properties.rs"]
mod properties;

use super::tidy::root;
use std::collections::BTreeSet;
use std::fs;
use std::panic::catch_unwind;

/// The names in a folder below `tests/fuzz`, without their endings.
fn names(folder: &str) -> BTreeSet<String> {
    let folder = root().join("tests/fuzz").join(folder);
    let entries = fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let stem = |path: std::path::PathBuf| path.file_stem().and_then(|stem| stem.to_str()).map(str::to_owned);
    entries.filter_map(|entry| stem(entry.expect("a readable folder").path())).collect()
}

#[test]
fn every_property_has_a_target_and_a_corpus_and_the_other_way_round() {
    let held: BTreeSet<String> = properties::ALL.iter().map(|(name, _)| (*name).to_owned()).collect();
    assert_eq!(names("fuzz_targets"), held);
    assert_eq!(names("corpus"), held);
    let manifest = fs::read_to_string(root().join("tests/fuzz/Cargo.toml")).expect("a manifest");
    let manifest: toml::Table = manifest.parse().expect("TOML");
    let built = manifest["bin"].as_array().expect("programs").iter();
    let built: BTreeSet<String> = built.filter_map(|bin| bin["name"].as_str()).map(str::to_owned).collect();
    assert_eq!(built, held);
}

#[test]
fn what_is_kept_in_the_corpora_holds() {
    for (name, property) in properties::ALL {
        let folder = root().join("tests/fuzz/corpus").join(name);
        let mut files: Vec<_> =
            fs::read_dir(&folder).expect("a corpus").map(|entry| entry.expect("an entry").path()).collect();
        files.sort();
        assert!(files.len() >= 3, "{} has too little to say", folder.display());
        for file in files {
            let data = fs::read(&file).expect("a readable seed");
            if catch_unwind(|| property(&data)).is_err() {
                panic!("{name} does not hold for {}: why is said above", file.display());
            }
        }
    }
}
