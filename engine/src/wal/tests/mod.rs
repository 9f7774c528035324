//! Tests of the log on the simulated disk.

mod damage;
mod format_page;
mod model;
mod sweep;
mod unit;
