use std::fs;

use super::*;

fn run(name: &str) -> Run {
    let mut run = Run { name: name.to_owned(), step: 100, steps: Some(100), ..Run::default() };
    for (tag, value) in [("loss/total", 0.5), ("memory/peak", 3e9), ("new_group/new", 4.0)] {
        let curve = Curve { steps: (1..=100).collect(), values: (1..=100).map(|n| value / f64::from(n)).collect() };
        run.curves.insert(tag.to_owned(), curve);
    }
    let curve = Curve { steps: (1..=100).collect(), values: vec![1.0; 100] };
    run.curves.insert("optimizer/loss_scale".to_owned(), curve);
    run.config.insert("optimizer.name".to_owned(), "\"adam\"".to_owned());
    run
}

#[test]
fn nothing_of_a_run_becomes_markup() {
    let evil = "</script><script>alert(1)</script>\"'&{{script}}";
    let mut run = run(evil);
    run.notes.push(evil.to_owned());
    run.config.insert(evil.to_owned(), evil.to_owned());
    run.curves.insert(format!("{evil}/{evil}"), Curve { steps: vec![1, 2], values: vec![1.0, 2.0] });
    run.curves.insert(format!("constant/{evil}"), Curve { steps: vec![1, 2], values: vec![1.0; 2] });
    let mut other = run.clone();
    other.config.insert(evil.to_owned(), format!("{evil}2"));
    let page = page(&[run, other]);
    assert!(page.contains("&lt;script&gt;alert(1)"));
    assert!(!page.contains("<script>alert"));
    assert_eq!((page.matches("<script>").count(), page.matches("</script>").count()), (1, 1));
}

/// The policy of the page itself forbids what is not in it, so what it allows has to be what is in it.
#[test]
fn the_page_asks_for_nothing() {
    let page = page(&[run("a")]);
    let between = |from: &str, to: &str| page.split_once(from).unwrap().1.split_once(to).unwrap().0;
    let policy = between("Content-Security-Policy\" content=\"", "\"");
    assert!(policy.starts_with("default-src 'none'; img-src data:;"), "{policy}");
    assert!(policy.contains(&format!("style-src 'sha256-{}'", hash(between("<style>", "</style>")))), "{policy}");
    assert!(policy.contains(&format!("script-src 'sha256-{}'", hash(between("<script>", "</script>")))), "{policy}");
    for word in ["http:", "https:", "//", "url(", "@import", "<link", " style=", " onclick", "src=\"h", "href"] {
        let page = page.replace("// ", "");
        assert!(!page.contains(word), "{word}");
    }
}

#[test]
fn charts_stand_in_groups_and_what_never_changes_is_listed() {
    let page = page(&[run("a"), run("b")]);
    let places: Vec<usize> = ["Losses", "Memory", "New group", "Constant throughout"]
        .iter()
        .map(|title| page.find(&format!("<h2>{title}</h2>")).unwrap_or_else(|| panic!("{title}")))
        .collect();
    assert!(places.is_sorted(), "{places:?}");
    assert!(page.contains(r#"<th scope="row">optimizer/loss_scale</th><td>1</td>"#));
    assert!(!page.contains("What differs"));
    assert_eq!(page.matches("<figure class=\"chart\"").count(), 3);
}

#[test]
fn what_differs_comes_first_and_alone() {
    let (a, mut b) = (run("same"), run("same"));
    b.config.insert("optimizer.name".into(), "\"adamw\"".into());
    b.config.insert("only.here".into(), "1".into());
    let page = page(&[a, b]);
    let differs = page.split_once("What differs").unwrap().1.split_once("</section>").unwrap().0;
    assert!(differs.contains("<td>&quot;adam&quot;</td><td>&quot;adamw&quot;</td>"), "{differs}");
    assert!(differs.contains("<th scope=\"row\">only.here</th><td>–</td><td>1</td>"), "{differs}");
    assert!(page.contains("same (1)") && page.contains("same (2)"));
    assert!(page.find("What differs") < page.find("Losses"));
}

#[test]
fn skipped_steps_are_counted() {
    let mut run = run("a");
    let skipped = Curve { steps: vec![1, 2, 3, 4], values: vec![1.0, 0.0, 1.0, 0.0] };
    run.curves.insert("optimizer/skipped".into(), skipped);
    let page = page(&[run]);
    assert!(page.contains(r#"<td data-title="skipped">2</td>"#));
    assert!(page.contains("skipped steps so far over the steps. a: 1 at step 1, 2 at step 4"));
}

#[test]
fn a_run_that_is_not_over_and_one_without_anything_are_shown() {
    let mut going_on = run("a");
    going_on.steps = Some(400);
    going_on.silent_for = Some(Duration::from_secs(7));
    let page_of_it = page(&[going_on, Run { name: "empty".into(), ..Run::default() }]);
    assert!(page_of_it.contains("100 of 400, the last one 7 s before this page"));
    assert!(page_of_it.contains("empty"));
    assert_eq!(page(&[]).matches("</html>").count(), 1);
}

/// However long a run and however many curves: the page stays below a size that a browser opens at once.
#[test]
fn the_size_is_bounded() {
    let mut run = run("long");
    for tag in 0..300 {
        let steps: Vec<u64> = (1..=20_000).collect();
        let values = steps.iter().map(|step| (*step as f64 * 0.37).sin() + f64::from(tag)).collect();
        run.curves.insert(format!("many/{tag}"), Curve { steps, values });
    }
    let page = page(&vec![run; 2]);
    assert!(page.contains("more curves are in metrics.jsonl"));
    assert!(page.len() < charts::MOST * 2 * 40_000, "{}", page.len());
}

#[test]
fn a_folder_makes_a_page() {
    let folder = tempfile::tempdir().unwrap();
    let samples = folder.path().join("samples");
    fs::create_dir(&samples).unwrap();
    image::RgbImage::new(9, 4).save(samples.join("step-000002.png")).unwrap();
    fs::write(folder.path().join("metrics.jsonl"), "{\"step\":1,\"loss\":1}\n{\"step\":2,\"loss\":2}\n{\"st").unwrap();
    let page = page(&[Run::read(folder.path(), &[]).unwrap()]);
    assert!(page.contains("the last line of metrics.jsonl is torn and left out"));
    assert!(page.contains("config.toml cannot be read"));
    assert!(page.contains(r#"width="9" height="4""#));
}
