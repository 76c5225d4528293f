// What hz uses of NiiVue; see build.sh.
export { NVImage, Niivue, SLICE_TYPE } from "@niivue/niivue";
