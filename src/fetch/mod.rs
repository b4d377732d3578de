//! A fetch's way through a tenant's program: the request out of Varnish, the answer into it.

pub mod answer;
pub mod ask;
pub mod body;
pub mod caching;
pub mod chain;
pub mod due;
pub mod held;
pub mod pace;
pub mod pipe;
pub mod plain;
pub mod request;
pub mod response;
pub mod serve;
pub mod streamed;
pub mod synth;
pub mod text;
pub mod unanswered;
