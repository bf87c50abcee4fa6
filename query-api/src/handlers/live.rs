//! `GET /ws/live`: samples as they arrive, by WebSocket.

use axum::{
    extract::{State, WebSocketUpgrade, ws::rejection::WebSocketUpgradeRejection},
    http::Uri,
    response::Response,
};

use crate::{
    app::App,
    live::{
        connection::LiveConnection,
        filter::{EXPECTED_GLOBS, LiveFilter, parse_globs},
    },
    params::Params,
    problem::ApiError,
};

/// Most bytes of a message from the peer, who has nothing to say.
const MAX_MESSAGE: usize = 4096;

/// Opens a live connection.
pub async fn open(
    State(app): State<App>,
    uri: Uri,
    upgrade: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
) -> Result<Response, ApiError> {
    let mut params = Params::of(&uri);
    let hosts = params.optional("hosts", EXPECTED_GLOBS, parse_globs);
    let measurements = params.optional("measurements", EXPECTED_GLOBS, parse_globs);
    params.finish()?;
    let upgrade = upgrade.map_err(|_| ApiError::not_websocket())?;
    let connection = LiveConnection {
        subscription: app.live.subscribe().ok_or_else(ApiError::too_many_subscribers)?,
        filter: LiveFilter::new(hosts, measurements),
        metrics: app.metrics.clone(),
        shutdown: app.shutdown.clone(),
    };
    let connections = app.connections.clone();
    Ok(upgrade.max_message_size(MAX_MESSAGE).on_upgrade(move |socket| connections.track_future(connection.run(socket))))
}
