//! Embeds the catalogue: every TOML file below `catalogue/`, sorted by name, as `(name, text)`.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::{env, fs};

fn main() {
    let root = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets CARGO_MANIFEST_DIR"))
        .join("catalogue");
    let mut files = Vec::new();
    visit(&root, &mut files);
    files.sort();
    let mut code = String::from("&[\n");
    for file in &files {
        let name =
            file.strip_prefix(&root).expect("the file was found below the catalogue").with_extension("");
        let name = name.to_str().expect("names of scenarios are UTF-8").replace('\\', "/");
        let path = file.to_str().expect("names of scenarios are UTF-8");
        writeln!(code, "    ({name:?}, include_str!({path:?})),").expect("a string takes all text");
    }
    code.push_str("]\n");
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR")).join("catalogue.rs");
    fs::write(&out, code).unwrap_or_else(|error| panic!("{}: {error}", out.display()));
}

/// Folders are watched, too, so that a new file is seen.
fn visit(folder: &Path, files: &mut Vec<PathBuf>) {
    println!("cargo::rerun-if-changed={}", folder.display());
    let entries = fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    for entry in entries {
        let path = entry.unwrap_or_else(|error| panic!("{}: {error}", folder.display())).path();
        if path.is_dir() {
            visit(&path, files);
        } else if path.extension().is_some_and(|ending| ending == "toml") {
            files.push(path);
        }
    }
}
