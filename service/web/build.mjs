// Builds src/ into dist/, which is committed: the same sources and lock file give the same bytes.
import { copyFile, mkdir, readFile, rm, writeFile } from "node:fs/promises";
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
const licences = [];
for (const name of ["@fontsource-variable/inter", "marked", "preact"]) {
  licences.push(`${name}\n\n${await readFile(`node_modules/${name}/LICENSE`, "utf8")}`);
}
await writeFile(`${out}/LICENCES.txt`, licences.join("\n\n"));
