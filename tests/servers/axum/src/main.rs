//! axum on tokio's threads: counts what it is asked, and the bytes of a body. What is random there is at /random; at /bytes/N
//! are N bytes.

use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use axum::Router;
use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, Path, State};
use axum::routing::get;
use rand::TryRng;

async fn answer(State(count): State<Arc<AtomicU64>>, body: Bytes) -> String {
    let count = count.fetch_add(1, Ordering::Relaxed) + 1;
    format!("count {count} bytes {}\n", body.len())
}

async fn bytes(Path(len): Path<usize>) -> String {
    "x".repeat(len)
}

/// A line each: its name and a value.
async fn random() -> String {
    let mut bytes = [0u8; 8];
    rand::rngs::SysRng
        .try_fill_bytes(&mut bytes)
        .unwrap_or_default();
    let system = u64::from_ne_bytes(bytes);
    let hash = RandomState::new().hash_one("a text");
    format!(
        "rand::rngs::SysRng\t{system}\nrand::rng()\t{}\nRandomState\t{hash}\n",
        rand::random::<u64>()
    )
}

#[tokio::main]
async fn main() -> std::io::Result<()> {
    let app = Router::new()
        .route("/", get(answer).post(answer))
        .route("/random", get(random))
        .route("/bytes/{len}", get(bytes))
        .layer(DefaultBodyLimit::max(32 << 20))
        .with_state(Arc::default());
    let listener = tokio::net::TcpListener::bind("127.0.0.1:8000").await?;
    axum::serve(listener, app).await
}
