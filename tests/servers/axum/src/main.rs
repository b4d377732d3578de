//! axum on tokio's threads: counts what it is asked, and the bytes of a body.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use axum::Router;
use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, State};
use axum::routing::get;

async fn answer(State(count): State<Arc<AtomicU64>>, body: Bytes) -> String {
    let count = count.fetch_add(1, Ordering::Relaxed) + 1;
    format!("count {count} bytes {}\n", body.len())
}

#[tokio::main]
async fn main() -> std::io::Result<()> {
    let app = Router::new()
        .route("/", get(answer).post(answer))
        .layer(DefaultBodyLimit::max(16 << 20))
        .with_state(Arc::default());
    let listener = tokio::net::TcpListener::bind("127.0.0.1:8000").await?;
    axum::serve(listener, app).await
}
