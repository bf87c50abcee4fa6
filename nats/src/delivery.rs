//! What breaks a session with a consumer off, for those who read the stream without a partition group.

/// Why messages come no more; reading goes on with another consumer, after the last message.
#[derive(Debug, thiserror::Error)]
pub enum DeliveryError {
    /// There is no consumer.
    #[error("failed to create the consumer")]
    Consumer(#[source] async_nats::Error),
    /// The consumer yields nothing.
    #[error("failed to pull messages")]
    Pull(#[source] async_nats::Error),
    /// A message says nothing about its place.
    #[error("failed to understand a delivery")]
    Place(#[source] async_nats::Error),
    /// The consumer is gone.
    #[error("the broker ended the delivery")]
    Ended,
    /// A message is missing.
    #[error("a delivery was lost")]
    Gap,
}
