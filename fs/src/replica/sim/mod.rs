//! Bricks, a store of configurations, a network and clients in one thread, from one seed.

mod check;
mod client;
mod recipes;
mod seeds;
mod world;
