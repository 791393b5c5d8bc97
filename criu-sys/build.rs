//! Generates the bindings from the installed headers and links libcriu and libcompel.

use std::{env, path::PathBuf};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=wrapper.h");
    let mut include_paths: Vec<PathBuf> = pkg_config::Config::new().probe("criu")?.include_paths;
    // Debian 12 ships libcompel without a .pc file; later releases have one.
    match pkg_config::Config::new().probe("libcompel").or_else(|_| pkg_config::Config::new().probe("compel"))
    {
        Ok(compel) => include_paths.extend(compel.include_paths),
        Err(_) => println!("cargo:rustc-link-lib=compel"),
    }
    // compel/infect.h includes "common/compiler.h" relative to its own directory's parent.
    include_paths.push("/usr/include/compel".into());

    bindgen::Builder::default()
        .header("wrapper.h")
        .clang_args(include_paths.iter().map(|path| format!("-I{}", path.display())))
        .allowlist_function("criu_local_(init_opts|free_opts|set_service_binary|get_version)")
        .allowlist_var("CRIU_LOG_.*|CRIU_VERSION_(MAJOR|MINOR|SUBLEVEL)")
        .allowlist_type("criu_(cg_mode|network_lock_method)")
        .allowlist_function("compel_(stop_task|resume_task|prepare|syscall|cure|log_init)")
        .allowlist_type("__compel_(task_state|log_levels)")
        .allowlist_function("vsnprintf")
        .prepend_enum_name(false)
        .generate_comments(false)
        .layout_tests(false)
        .generate()?
        .write_to_file(PathBuf::from(env::var("OUT_DIR")?).join("bindings.rs"))?;
    Ok(())
}
