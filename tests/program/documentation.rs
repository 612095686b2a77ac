//! The commands of the documentation are typed in as they stand there.
//!
//! A block with commands of this program has a comment before it that says what they need, such as
//! `<!-- commands need: images, the Hub -->`; see [`Needs`]. What is in a line of text between backticks is only read.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use clap::CommandFactory;
use clap::error::ErrorKind;
use pulldown_cmark::{Event, Options, Parser, Tag, TagEnd};
use trainer::commands::CommandLine;
use trainer::config::{self, BUILT_IN, Override};

use crate::command::{command, finished, run};
use crate::hub::{by_hub, everything, write_images};
use crate::stand_in_hub::Hub;

/// What the commands of a block need.
#[derive(Debug, Default)]
struct Needs {
    /// A folder of images, `images`.
    images: bool,
    /// The Hub: its stand-in serves small models.
    hub: bool,
    /// A finished run, `runs/tiny-cpu`.
    run: bool,
    /// A GPU: the commands are only read.
    gpu: bool,
}

impl Needs {
    fn parse(comment: &str) -> Option<Self> {
        let list = comment.trim().strip_prefix("<!-- commands need: ")?.strip_suffix(" -->")?;
        let mut needs = Self::default();
        for need in list.split(", ") {
            match need {
                "nothing" => {}
                "images" => needs.images = true,
                "the Hub" => needs.hub = true,
                "a run" => needs.run = true,
                "a GPU" => needs.gpu = true,
                other => panic!("`{other}` in {comment}"),
            }
        }
        Some(needs)
    }

    /// As much of a run as a CPU does in seconds.
    fn shortened(&self, command: &str) -> String {
        let short: &[&str] = match command.split(' ').nth(1) {
            Some("plan") => &["--precision fp32", "--recompute none", "--steps 2"],
            Some("--config") if self.hub => &[
                "--set run.steps=1",
                "--set run.device=cpu",
                "--set batch.effective=2",
                "--set data.resolution=64",
                "--set validation.images=2",
            ],
            Some("--config") => &["--set run.steps=1", "--set validation.images=2"],
            Some("--resume") if self.run => &["--set run.steps=2"],
            _ => &[],
        };
        [&[command], short].concat().join(" ")
    }
}

/// A block of a page that has commands of this program.
#[derive(Debug)]
struct Block {
    place: String,
    needs: Needs,
    commands: Vec<String>,
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// All pages for users, by their names.
fn pages() -> Vec<(String, String)> {
    let root = root();
    let mut paths = vec![root.join("README.md")];
    let docs = fs::read_dir(root.join("trainer/docs")).unwrap().map(|entry| entry.unwrap().path());
    paths.extend(docs.filter(|path| path.extension().is_some_and(|ending| ending == "md")));
    paths.sort();
    let page = |path: PathBuf| (path.file_name().unwrap().display().to_string(), fs::read_to_string(path).unwrap());
    paths.into_iter().map(page).collect()
}

/// The commands of this program in a line of a block, as one types them: without a prompt and without a comment.
fn command_of(line: &str, is_session: bool) -> Option<String> {
    let line = if is_session { line.strip_prefix("$ ")? } else { line };
    let line = line.split(" #").next().unwrap_or_default().trim();
    let rest = line.strip_prefix("train ").or_else(|| line.strip_prefix("cargo run --release -- "))?;
    Some(format!("train {}", rest.replace("/path/to/images", "images")))
}

fn blocks(name: &str, page: &str) -> Vec<Block> {
    let page = page.replace("\\\n", " ");
    let mut found = Vec::new();
    let mut lines = page.lines().enumerate();
    let mut before = "";
    while let Some((number, line)) = lines.next() {
        let kind = line.strip_prefix("```").filter(|kind| ["sh", "console"].contains(kind));
        if let Some(kind) = kind {
            let block = lines.by_ref().map(|(_, line)| line).take_while(|line| *line != "```");
            let commands: Vec<String> = block.filter_map(|line| command_of(line, kind == "console")).collect();
            let place = format!("{name}:{}", number + 1);
            if !commands.is_empty() {
                let needs = Needs::parse(before);
                let needs = needs.unwrap_or_else(|| panic!("{place}: say before the block what its commands need"));
                found.push(Block { place, needs, commands });
            }
        }
        before = line;
    }
    found
}

/// Splits a command like a shell does, without where its output goes.
fn words(command: &str) -> Vec<String> {
    let command = command.split(" > ").next().unwrap_or_default();
    let script = format!("set -f; printf '%s\\0' {command}");
    let output = Command::new("sh").args(["-c", &script]).output().unwrap();
    assert!(output.status.success(), "{command}");
    String::from_utf8(output.stdout).unwrap().split_terminator('\0').map(str::to_owned).collect()
}

/// Checks that the program knows verb and options of `command`, and that the configuration is sound if it is a built-in
/// one. `is_whole`: that nothing is missing either.
fn check(place: &str, command: &str, is_whole: bool) {
    let words = words(command);
    let verbs: Vec<String> = CommandLine::command().get_subcommands().map(|verb| verb.get_name().to_owned()).collect();
    match CommandLine::command().try_get_matches_from(&words) {
        Ok(matches) => {
            let verb = matches.subcommand_name();
            assert!(verb.is_none_or(|verb| verbs.iter().any(|known| known == verb)), "{place}: {command}");
        }
        Err(error) if error.kind() == ErrorKind::MissingRequiredArgument && !is_whole => {}
        Err(error) => panic!("{place}: {command}: {error}"),
    }
    let after = |option: &str| words.iter().skip_while(move |word| *word != option).nth(1);
    if let Some(name) = after("--config").filter(|name| BUILT_IN.iter().any(|(built_in, _)| built_in == name)) {
        let sets = words.windows(2).filter(|pair| pair[0] == "--set");
        let sets: Vec<Override> = sets.map(|pair| pair[1].parse().unwrap()).collect();
        config::load(name, &sets).unwrap_or_else(|error| panic!("{place}: {command}: {error}"));
    }
}

#[test]
fn commands_of_the_documentation_run() {
    let mut count = 0;
    for (name, page) in pages() {
        for Block { place, needs, commands } in blocks(&name, &page) {
            commands.iter().for_each(|command| check(&place, command, true));
            count += commands.len();
            if needs.gpu {
                continue;
            }
            let folder = tempfile::tempdir().unwrap();
            let hub = needs.hub.then(|| Hub::new(everything(folder.path())));
            if needs.images {
                write_images(&folder.path().join("images"), 8);
            }
            if needs.run {
                let sets = ["run.steps=1", "batch.effective=4", "validation.images=2"].map(|set| ["--set", set]);
                run(folder.path(), &[&["--config", "tiny-cpu.toml"][..], sets.as_flattened()].concat()).success();
            }
            for line in commands {
                let line = needs.shortened(&line);
                let program = command(folder.path(), &[]);
                let mut shell = Command::new("sh");
                shell.args(["-c", &line.replacen("train", "\"$TRAIN\"", 1)]).current_dir(folder.path());
                shell.env("TRAIN", program.get_program());
                for (key, value) in program.get_envs() {
                    match value {
                        Some(value) => shell.env(key, value),
                        None => shell.env_remove(key),
                    };
                }
                if let Some(hub) = &hub {
                    shell = by_hub(shell, hub);
                }
                let finished = finished(shell.output().unwrap());
                assert_eq!(finished.code, 0, "{place}: {line}\n{}", finished.stderr);
            }
        }
    }
    assert!(count > 10, "{count}");
}

/// A line of text may name a part of a command, and a name such as RUN may stand for a folder.
#[test]
fn commands_within_the_text_are_known() {
    let mut count = 0;
    for (name, page) in pages() {
        for (number, line) in page.lines().enumerate() {
            let spans = line.split('`').skip(1).step_by(2).filter(|span| span.starts_with("train "));
            for span in spans {
                check(&format!("{name}:{}", number + 1), span, false);
                count += 1;
            }
        }
    }
    assert!(count > 20, "{count}");
}

/// The examples of configurations can be used as they stand there.
#[test]
fn configurations_of_the_documentation_are_sound() {
    let folder = tempfile::tempdir().unwrap();
    let mut count = 0;
    for (name, page) in pages() {
        let blocks = page.split("```toml\n").skip(1).filter_map(|rest| rest.split_once("```"));
        for (number, (block, _)) in blocks.enumerate() {
            let path = folder.path().join(format!("{number}-of-{name}.toml"));
            fs::write(&path, block).unwrap();
            config::load(path.to_str().unwrap(), &[]).unwrap_or_else(|error| panic!("{error}"));
            count += 1;
        }
    }
    assert!(count > 5, "{count}");
}

/// All Markdown files in `folder`, without those of hidden folders and of what cargo builds.
fn markdown_files(folder: &Path) -> Vec<PathBuf> {
    let is_skipped = |path: &Path| {
        let name = path.file_name().unwrap().to_string_lossy();
        name.starts_with('.') || name == "target"
    };
    let mut files = Vec::new();
    for path in fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
        if path.is_dir() && !path.is_symlink() && !is_skipped(&path) {
            files.extend(markdown_files(&path));
        } else if path.extension().is_some_and(|ending| ending == "md") {
            files.push(path);
        }
    }
    files
}

/// The headings of a page, as GitHub turns them into anchors, and where its links and images point.
fn anchors_and_links(page: &str) -> (BTreeSet<String>, Vec<String>) {
    let (mut anchors, mut links) = (BTreeSet::new(), Vec::new());
    let mut heading: Option<String> = None;
    for event in Parser::new_ext(page, Options::ENABLE_TABLES | Options::ENABLE_YAML_STYLE_METADATA_BLOCKS) {
        match event {
            Event::Start(Tag::Heading { .. }) => heading = Some(String::new()),
            Event::Text(text) | Event::Code(text) => heading.iter_mut().for_each(|heading| heading.push_str(&text)),
            Event::End(TagEnd::Heading(_)) => {
                let heading = heading.take().unwrap().to_lowercase().replace(' ', "-");
                let anchor = heading.chars().filter(|c| c.is_alphanumeric() || ['-', '_'].contains(c)).collect();
                assert!(anchors.insert(anchor), "two headings are \"{heading}\"");
            }
            Event::Start(Tag::Link { dest_url, .. } | Tag::Image { dest_url, .. }) => links.push(dest_url.to_string()),
            _ => {}
        }
    }
    (anchors, links)
}

/// The links of the page at `path` to files or headings that do not exist. Other sites are not asked.
fn broken_links(path: &Path) -> Vec<String> {
    let (_, links) = anchors_and_links(&fs::read_to_string(path).unwrap());
    let is_broken = |link: &String| {
        let (file, anchor) = link.split_once('#').map_or((&**link, None), |(file, anchor)| (file, Some(anchor)));
        let target = if file.is_empty() { path.to_owned() } else { path.parent().unwrap().join(file) };
        let has = |anchor: &str| anchors_and_links(&fs::read_to_string(&target).unwrap()).0.contains(anchor);
        !target.exists() || anchor.is_some_and(|anchor| !has(anchor))
    };
    links.into_iter().filter(|link| !link.contains("://")).filter(is_broken).collect()
}

#[test]
fn links_of_the_documentation_lead_somewhere() {
    let files = markdown_files(&root());
    assert!(files.len() > 15, "{files:?}");
    for path in files {
        assert_eq!(broken_links(&path), [""; 0], "{}", path.display());
    }
}

#[test]
fn a_broken_link_is_found() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("page.md");
    let links = "[a](page.md) [b](none.md) [c](#how-it-is-kept) [d](page.md#none) [e](https://none)\n\n![f](none.png)";
    fs::write(&path, format!("## How it is `kept`\n\n{links}\n\n|a|\n|-|\n|[g](#none)|\n")).unwrap();
    assert_eq!(broken_links(&path), ["none.md", "page.md#none", "none.png", "#none"]);
}

#[test]
fn the_readme_is_short() {
    let lines = fs::read_to_string(root().join("README.md")).unwrap().lines().count();
    assert!(lines <= 150, "{lines}");
}
