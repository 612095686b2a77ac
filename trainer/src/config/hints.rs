//! What an unknown key is likely meant to be.

use super::{reference, tables};
use crate::problem::nearest;

/// What other trainers call a key of this one.
const ELSEWHERE: [(&str, &str); 17] = [
    ("lr", "optimizer.learning_rate"),
    ("size", "batch.effective"),
    ("size", "data.resolution"),
    ("batch_size", "batch.effective"),
    ("accumulation", "batch.effective"),
    ("accumulation_steps", "batch.effective"),
    ("accumulate_grad_batches", "batch.effective"),
    ("gradient_accumulation_steps", "batch.effective"),
    ("micro_batch_size", "batch.micro"),
    ("epochs", "run.steps"),
    ("max_steps", "run.steps"),
    ("iterations", "run.steps"),
    ("warmup_steps", "schedule.warmup"),
    ("image_size", "data.resolution"),
    ("num_workers", "data.workers"),
    ("max_grad_norm", "optimizer.clip_norm"),
    ("dtype", "precision.compute"),
];

/// What `wrong`, a key of a table with the keys `allowed`, is likely meant to be: a key of this table, or the whole name
/// of another one.
pub(super) fn meant(wrong: &str, allowed: &[&str]) -> Option<String> {
    let of_table = |key: &str| key.rsplit('.').next().is_some_and(|name| allowed.contains(&name));
    let elsewhere = || ELSEWHERE.iter().filter(|(name, _)| *name == wrong).map(|(_, key)| *key);
    let known = elsewhere().find(|key| of_table(key)).or_else(|| elsewhere().next());
    if let Some(key) = known {
        return Some(key.to_owned());
    }
    // A key of this name in another table, such as `run.steps` for `steps`.
    let keys = reference().into_iter().map(|known| known.key);
    let same = keys.filter(|key| key.rsplit_once('.').is_some_and(|(_, name)| name == wrong));
    same.min_by_key(|key| key.matches('.').count()).or_else(|| nearest(wrong, allowed).map(str::to_owned))
}

/// Checks that `key` is a key or a table.
///
/// # Errors
/// A line with the nearest name, if it is none.
pub(super) fn check_known(key: &str) -> Result<(), String> {
    let keys = reference().into_iter().map(|known| known.key);
    let known: Vec<String> = keys.chain(tables().into_iter().map(|(name, _)| name)).collect();
    let known: Vec<&str> = known.iter().map(String::as_str).collect();
    if known.contains(&key) || known.iter().any(|known| known.starts_with(&format!("{key}."))) {
        return Ok(());
    }
    let hint = nearest(key, &known).map(|name| format!(", did you mean `{name}`?")).unwrap_or_default();
    Err(format!("unknown key `{key}`{hint}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::read::tests::load_text;

    #[test]
    fn what_other_trainers_call_a_key_is_known() {
        let keys: Vec<String> = reference().into_iter().map(|known| known.key).collect();
        assert!(ELSEWHERE.iter().all(|(_, key)| keys.iter().any(|known| known == key)));
        for (set, key) in [
            ("lr=1", "optimizer.learning_rate"),
            ("optimizer.lr=1", "optimizer.learning_rate"),
            ("batch.size=8", "batch.effective"),
            ("data.size=8", "data.resolution"),
            ("batch.accumulation=8", "batch.effective"),
            ("steps=3", "run.steps"),
            ("seed=3", "run.seed"),
            ("optimizer.warmup=3", "schedule.warmup"),
            ("run.resolution=8", "data.resolution"),
        ] {
            let error = load_text("", &[set]).unwrap_err();
            assert!(error.contains(&format!("did you mean `{key}`?")), "{set}: {error}");
        }
        let error = load_text("[optimizer]\nlr = 1\n", &[]).unwrap_err();
        assert!(error.starts_with("mine.toml:2: ") && error.contains("`optimizer.learning_rate`"), "{error}");
    }
}
