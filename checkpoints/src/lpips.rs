//! The networks that LPIPS exists for.

/// The network whose features LPIPS compares.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LpipsNetwork {
    /// VGG16, what LPIPS is trained against as a loss.
    Vgg16,
    /// AlexNet, what LPIPS is reported with as a metric.
    AlexNet,
}
