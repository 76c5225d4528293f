// In the place of numcodecs' WebAssembly: zarr chunks, which hz never shows.
export default class {}
