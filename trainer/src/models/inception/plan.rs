//! The layers of InceptionV3, by the names of their weights.

/// Values of an image's features, and the classes that they are mapped to.
pub(super) const FEATURES: usize = 2048;
pub(super) const CLASSES: usize = 1008;

/// A layer, or several side by side.
pub(super) enum Plan {
    /// A convolution with a norm and a ReLU.
    Convolution { name: &'static str, outputs: usize, kernel: [usize; 2], stride: usize, padding: [usize; 2] },
    /// The mean of 3 x 3 pixels, at every pixel.
    AveragePool,
    /// The maximum of 3 x 3 pixels.
    MaxPool { stride: usize, padding: usize },
    /// Branches with the same input; without a name within another block.
    Block { name: &'static str, branches: Vec<Vec<Plan>> },
}

/// A convolution that keeps the size.
fn same(name: &'static str, outputs: usize, kernel: [usize; 2]) -> Plan {
    Plan::Convolution { name, outputs, kernel, stride: 1, padding: kernel.map(|side| side / 2) }
}

/// A convolution without padding.
fn valid(name: &'static str, outputs: usize, side: usize, stride: usize) -> Plan {
    Plan::Convolution { name, outputs, kernel: [side; 2], stride, padding: [0; 2] }
}

fn point(name: &'static str, outputs: usize) -> Plan {
    same(name, outputs, [1, 1])
}

const HALVE: Plan = Plan::MaxPool { stride: 2, padding: 0 };

/// All layers before the mean over the pixels.
pub(super) fn network() -> Vec<Plan> {
    vec![
        valid("Conv2d_1a_3x3", 32, 3, 2),
        valid("Conv2d_2a_3x3", 32, 3, 1),
        same("Conv2d_2b_3x3", 64, [3, 3]),
        HALVE,
        valid("Conv2d_3b_1x1", 80, 1, 1),
        valid("Conv2d_4a_3x3", 192, 3, 1),
        HALVE,
        block_a("Mixed_5b", 32),
        block_a("Mixed_5c", 64),
        block_a("Mixed_5d", 64),
        block_b("Mixed_6a"),
        block_c("Mixed_6b", 128),
        block_c("Mixed_6c", 160),
        block_c("Mixed_6d", 160),
        block_c("Mixed_6e", 192),
        block_d("Mixed_7a"),
        block_e("Mixed_7b", Plan::AveragePool),
        // TensorFlow's network of 2015 has a maximum here, the paper does not.
        block_e("Mixed_7c", Plan::MaxPool { stride: 1, padding: 1 }),
    ]
}

fn block_a(name: &'static str, pooled: usize) -> Plan {
    let branches = vec![
        vec![point("branch1x1", 64)],
        vec![point("branch5x5_1", 48), same("branch5x5_2", 64, [5, 5])],
        vec![point("branch3x3dbl_1", 64), same("branch3x3dbl_2", 96, [3, 3]), same("branch3x3dbl_3", 96, [3, 3])],
        vec![Plan::AveragePool, point("branch_pool", pooled)],
    ];
    Plan::Block { name, branches }
}

fn block_b(name: &'static str) -> Plan {
    let branches = vec![
        vec![valid("branch3x3", 384, 3, 2)],
        vec![point("branch3x3dbl_1", 64), same("branch3x3dbl_2", 96, [3, 3]), valid("branch3x3dbl_3", 96, 3, 2)],
        vec![HALVE],
    ];
    Plan::Block { name, branches }
}

fn block_c(name: &'static str, inner: usize) -> Plan {
    let branches = vec![
        vec![point("branch1x1", 192)],
        vec![point("branch7x7_1", inner), same("branch7x7_2", inner, [1, 7]), same("branch7x7_3", 192, [7, 1])],
        vec![
            point("branch7x7dbl_1", inner),
            same("branch7x7dbl_2", inner, [7, 1]),
            same("branch7x7dbl_3", inner, [1, 7]),
            same("branch7x7dbl_4", inner, [7, 1]),
            same("branch7x7dbl_5", 192, [1, 7]),
        ],
        vec![Plan::AveragePool, point("branch_pool", 192)],
    ];
    Plan::Block { name, branches }
}

fn block_d(name: &'static str) -> Plan {
    let branches = vec![
        vec![point("branch3x3_1", 192), valid("branch3x3_2", 320, 3, 2)],
        vec![
            point("branch7x7x3_1", 192),
            same("branch7x7x3_2", 192, [1, 7]),
            same("branch7x7x3_3", 192, [7, 1]),
            valid("branch7x7x3_4", 192, 3, 2),
        ],
        vec![HALVE],
    ];
    Plan::Block { name, branches }
}

fn block_e(name: &'static str, pool: Plan) -> Plan {
    let fork = |rows, columns| {
        let branches = vec![vec![same(rows, 384, [1, 3])], vec![same(columns, 384, [3, 1])]];
        Plan::Block { name: "", branches }
    };
    let branches = vec![
        vec![point("branch1x1", 320)],
        vec![point("branch3x3_1", 384), fork("branch3x3_2a", "branch3x3_2b")],
        vec![
            point("branch3x3dbl_1", 448),
            same("branch3x3dbl_2", 384, [3, 3]),
            fork("branch3x3dbl_3a", "branch3x3dbl_3b"),
        ],
        vec![pool, point("branch_pool", 192)],
    ];
    Plan::Block { name, branches }
}
