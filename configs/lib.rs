//! The configurations of this folder as text. They are a crate, so that a published program has them too.

/// Every configuration by its name, in the order in which they are listed.
pub const BUILT_IN: [(&str, &str); 7] = [
    ("tiny-cpu.toml", include_str!("tiny-cpu.toml")),
    ("own-images-cpu.toml", include_str!("own-images-cpu.toml")),
    ("from-scratch-cpu.toml", include_str!("from-scratch-cpu.toml")),
    ("small-gpu.toml", include_str!("small-gpu.toml")),
    ("8gb-gpu.toml", include_str!("8gb-gpu.toml")),
    ("24gb-gpu.toml", include_str!("24gb-gpu.toml")),
    ("sweep-ci.toml", include_str!("sweep-ci.toml")),
];
