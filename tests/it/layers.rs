//! Who imports whom, read from the source tree: folders import downwards, and no file imports itself by a detour.
//!
//! A file is a node; `use` and paths such as `crate::a::b` are its edges. What a test imports is its own affair: modules
//! behind `#[cfg(test)]` are left out. A re-export counts as the file it stands in.

use crate::tidy::root;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

/// A crate and its folders, lowest first. A folder imports from itself and from those before it.
struct Layers {
    name: &'static str,
    folders: &'static [&'static str],
}

const CRATES: &[Layers] = &[
    Layers {
        name: "bridge",
        folders: &["base", "audio", "wire", "call", "auth", "net", "runtime", "server", "export", "app"],
    },
    Layers {
        name: "scenarios",
        folders: &[
            "base", "model", "sim", "oracle", "audio", "report", "search", "field", "faults", "conform",
            "contract", "cli",
        ],
    },
    // These two have no folders but by protocol.
    Layers { name: "mocks", folders: &[] },
    Layers { name: "golden", folders: &[] },
];

/// `a::b::c` as a list; the crate's root is empty.
type Module = Vec<String>;

/// Each module of a crate with the modules it imports.
type Imports = BTreeMap<Module, BTreeSet<Module>>;

fn modules(below: &Path, above: &[String], found: &mut Vec<(Module, String)>) {
    let mut entries: Vec<_> =
        fs::read_dir(below).expect("a folder").map(|e| e.expect("an entry").path()).collect();
    entries.sort();
    for path in entries {
        let stem = path.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default().to_owned();
        let mut module = above.to_vec();
        if path.is_dir() {
            if !["bin", "tests"].contains(&stem.as_str()) {
                module.push(stem);
                modules(&path, &module, found);
            }
        } else if path.extension().is_some_and(|extension| extension == "rs")
            && !["main", "tests"].contains(&stem.as_str())
        {
            if stem != "lib" {
                module.push(stem);
            }
            found.push((module, code(&fs::read_to_string(&path).expect("a source file"))));
        }
    }
}

/// The text without comments and test modules.
fn code(text: &str) -> String {
    let text = ["mod tests {", "pub(crate) mod tests {"]
        .into_iter()
        .fold(text, |text, tests| text.split(&format!("#[cfg(test)]\n{tests}")).next().unwrap_or_default());
    text.lines().map(|line| line.split("//").next().unwrap_or_default()).collect::<Vec<_>>().join("\n")
}

/// The paths of a `use` declaration, its braces taken apart.
fn taken_apart(before: &str, tree: &str, paths: &mut Vec<String>) {
    let tree = tree.trim();
    let Some((head, inner)) = tree.split_once('{') else {
        let path = tree.split(" as ").next().unwrap_or_default();
        return paths.push(format!("{before}{path}"));
    };
    let inner = inner.trim_end().strip_suffix('}').unwrap_or(inner);
    let (mut depth, mut from) = (0, 0);
    for (at, c) in inner.char_indices().chain([(inner.len(), ',')]) {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 0 => {
                taken_apart(&format!("{before}{head}"), &inner[from..at], paths);
                from = at + 1;
            }
            _ => {}
        }
    }
}

/// The paths that a file names.
fn paths(code: &str) -> Vec<String> {
    let mut paths = Vec::new();
    let mut rest = code;
    while let Some(at) = rest.find("use ") {
        let begins = rest[..at].chars().next_back().is_none_or(|c| !c.is_alphanumeric() && c != '_');
        let tree = &rest[at + 4..];
        let end = tree.find(';').unwrap_or(tree.len());
        if begins {
            taken_apart("", &tree[..end], &mut paths);
        }
        rest = &tree[end..];
    }
    for start in ["crate::", "super::", "self::"] {
        for (at, _) in code.match_indices(start) {
            let path: String =
                code[at..].chars().take_while(|c| c.is_alphanumeric() || *c == '_' || *c == ':').collect();
            // A brace behind it belongs to a `use`, which was read above.
            if !path.ends_with(':') {
                paths.push(path);
            }
        }
    }
    paths.into_iter().map(|path| path.chars().filter(|c| !c.is_whitespace()).collect()).collect()
}

/// The modules below `from` that its code names without a `use`: `child::item`.
fn children(code: &str, from: &Module, known: &BTreeSet<Module>) -> Vec<Module> {
    let named = |child: &str| {
        code.match_indices(&format!("{child}::")).any(|(at, _)| {
            code[..at].chars().next_back().is_none_or(|c| !c.is_alphanumeric() && c != '_' && c != ':')
        })
    };
    let below = |module: &&Module| module.len() == from.len() + 1 && module.starts_with(from);
    known
        .iter()
        .filter(below)
        .filter(|module| module.last().is_some_and(|child| named(child)))
        .cloned()
        .collect()
}

/// The module of this crate that a path of `from` leads to.
fn leads_to(path: &str, from: &Module, known: &BTreeSet<Module>) -> Option<Module> {
    let mut parts: Vec<&str> = path.split("::").collect();
    let mut base = match parts[0] {
        "crate" => {
            parts.remove(0);
            Vec::new()
        }
        "super" => {
            let mut base = from.clone();
            while parts.first() == Some(&"super") {
                base.pop();
                parts.remove(0);
            }
            base
        }
        "self" => {
            parts.remove(0);
            from.clone()
        }
        child => known.contains(&[from.clone(), vec![child.to_owned()]].concat()).then(|| from.clone())?,
    };
    base.extend(parts.into_iter().map(str::to_owned));
    while !base.is_empty() && !known.contains(&base) {
        base.pop();
    }
    (!base.is_empty() && base != *from).then_some(base)
}

fn imports_of(source: &Path) -> Imports {
    let mut found = Vec::new();
    modules(source, &[], &mut found);
    let known: BTreeSet<Module> = found.iter().map(|(module, _)| module.clone()).collect();
    found
        .into_iter()
        .filter(|(module, _)| !module.is_empty())
        .map(|(module, code)| {
            let mut imported: BTreeSet<_> =
                paths(&code).iter().filter_map(|path| leads_to(path, &module, &known)).collect();
            imported.extend(children(&code, &module, &known));
            (module, imported)
        })
        .collect()
}

/// Imports that go up, in words.
fn upwards(imports: &Imports, folders: &[&str]) -> Vec<String> {
    let rank = |module: &Module| folders.iter().position(|folder| *folder == module[0]);
    let mut found = Vec::new();
    for (module, imported) in imports {
        for other in imported {
            match (rank(module), rank(other)) {
                (Some(from), Some(to)) if to <= from => {}
                (Some(_), Some(_)) => {
                    found.push(format!(
                        "{} imports {}, which is above it",
                        module.join("::"),
                        other.join("::")
                    ));
                }
                (None, _) => found.push(format!("{} is in no folder with a rank", module.join("::"))),
                (_, None) => found.push(format!("{} is in no folder with a rank", other.join("::"))),
            }
        }
    }
    found
}

/// A way from a file back to itself, if there is one.
fn detour(imports: &Imports) -> Option<Vec<String>> {
    fn walk(at: &Module, imports: &Imports, way: &mut Vec<Module>, done: &mut BTreeSet<Module>) -> bool {
        if way.contains(at) {
            way.push(at.clone());
            return true;
        }
        if !done.insert(at.clone()) {
            return false;
        }
        way.push(at.clone());
        if imports.get(at).into_iter().flatten().any(|next| walk(next, imports, way, done)) {
            return true;
        }
        way.pop();
        false
    }
    let mut done = BTreeSet::new();
    for module in imports.keys() {
        let mut way = Vec::new();
        if walk(module, imports, &mut way, &mut done) {
            let begins = way.iter().position(|at| Some(at) == way.last()).unwrap_or(0);
            return Some(way[begins..].iter().map(|at| at.join("::")).collect());
        }
    }
    None
}

#[test]
fn folders_import_downwards() {
    for Layers { name, folders } in CRATES {
        if folders.is_empty() {
            continue;
        }
        let found = upwards(&imports_of(&root().join(name).join("src")), folders);
        assert!(found.is_empty(), "in {name}, where folders are ranked {folders:?}:\n{}", found.join("\n"));
    }
}

#[test]
fn no_file_imports_itself_by_a_detour() {
    for Layers { name, .. } in CRATES {
        let imports = imports_of(&root().join(name).join("src"));
        assert!(imports.len() > 2, "{name} was not read");
        if let Some(way) = detour(&imports) {
            panic!("in {name}: {}", way.join(" -> "));
        }
    }
}

#[test]
fn an_import_that_goes_up_and_a_detour_are_found() {
    let module = |path: &str| -> Module { path.split("::").map(str::to_owned).collect() };
    let known: BTreeSet<Module> = ["low::a", "low::b", "high::c"].map(module).into();
    let imports = |a: &str, b: &str| -> Imports {
        [("low::a", a), ("low::b", b), ("high::c", "use crate::low::{a::X, b};")]
            .map(|(from, text)| {
                let from = module(from);
                let found =
                    paths(&code(text)).iter().filter_map(|path| leads_to(path, &from, &known)).collect();
                (from, found)
            })
            .into()
    };
    let good =
        imports("use super::b::Y; // crate::high::c", "#[cfg(test)]\nmod tests { use super::super::a; }");
    assert_eq!((upwards(&good, &["low", "high"]), detour(&good)), (vec![], None));
    let up = imports("fn f() -> crate::high::c::Z {}", "");
    assert_eq!(upwards(&up, &["low", "high"]), ["low::a imports high::c, which is above it"]);
    let round = imports("pub use super::b::{self, Y as X};", "use crate::{low::{a::Q}};");
    assert_eq!(detour(&round).map(|way| way.len()), Some(3));
}
