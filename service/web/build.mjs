// Builds src/ into dist/, which is committed: the same sources and lock file give the same bytes.
import { copyFile, mkdir, rm } from "node:fs/promises";
import { build } from "esbuild";

const out = process.argv[2] ?? "dist";
await rm(out, { recursive: true, force: true });
await mkdir(out, { recursive: true });
await build({
  entryPoints: { app: "src/main.tsx", style: "src/style.css" },
  outdir: out,
  bundle: true,
  minify: true,
  format: "esm",
  target: ["es2022", "chrome123", "firefox120", "safari17.5"], // all have light-dark() and color-mix()
  jsx: "automatic",
  jsxImportSource: "preact",
  external: ["*.woff2"],
  legalComments: "eof",
});
for (const [source, name] of [
  ["src/index.html", "index.html"],
  ["src/icon.svg", "icon.svg"],
  ["node_modules/@fontsource-variable/inter/files/inter-latin-wght-normal.woff2", "inter.woff2"],
]) {
  await copyFile(source, `${out}/${name}`);
}
