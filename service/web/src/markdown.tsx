import { marked, type Token, type Tokens } from "marked";
import type { ComponentChildren } from "preact";

/**
 * Markdown as elements. There is no HTML on the way: a tag in the text is text, and only links that lead to other pages
 * are links.
 */
export function Markdown({ text }: { text: string }) {
  return <div class="markdown">{elements(marked.lexer(text, { gfm: true }))}</div>;
}

function elements(tokens: Token[] | undefined): ComponentChildren {
  return tokens?.map((token, index) => <Element key={index} token={token as Tokens.Generic} />);
}

function Element({ token }: { token: Tokens.Generic }) {
  const inside = token.tokens ? elements(token.tokens) : (token.text as string);
  switch (token.type) {
    case "space":
    case "def":
      return null;
    case "paragraph":
      return <p>{inside}</p>;
    case "heading":
      return <p class={`heading heading-${token.depth}`}>{inside}</p>; // the page has its own outline
    case "code":
      return (
        <pre tabIndex={0}>
          <code>{token.text}</code>
        </pre>
      );
    case "blockquote":
      return <blockquote>{inside}</blockquote>;
    case "list":
      return <List list={token as Tokens.List} />;
    case "table":
      return <Table table={token as Tokens.Table} />;
    case "hr":
      return <hr />;
    case "br":
      return <br />;
    case "strong":
      return <strong>{inside}</strong>;
    case "em":
      return <em>{inside}</em>;
    case "del":
      return <del>{inside}</del>;
    case "codespan":
      return <code>{token.text}</code>;
    case "link":
      return <Link href={token.href}>{inside}</Link>;
    case "image":
      return <Link href={token.href}>{token.text || "image"}</Link>; // what a model names is not fetched
    case "text":
    case "escape":
      return <>{inside}</>;
    default:
      return <>{token.raw}</>;
  }
}

function Link({ href, children }: { href: string; children: ComponentChildren }) {
  if (!/^(https?:|mailto:)/i.test(href)) return <>{children}</>;
  return (
    <a href={href} target="_blank" rel="noopener noreferrer nofollow">
      {children}
    </a>
  );
}

function List({ list }: { list: Tokens.List }) {
  const items = list.items.map((item, index) => (
    <li key={index}>
      {item.task && (item.checked ? "☑ " : "☐ ")}
      {elements(item.tokens)}
    </li>
  ));
  return list.ordered ? <ol start={Number(list.start) || 1}>{items}</ol> : <ul>{items}</ul>;
}

function Table({ table }: { table: Tokens.Table }) {
  return (
    <div class="scroll" tabIndex={0} role="group" aria-label="Table">
      <table>
        <thead>
          <tr>
            {table.header.map((cell, index) => (
              <th key={index}>{elements(cell.tokens)}</th>
            ))}
          </tr>
        </thead>
        <tbody>
          {table.rows.map((row, number) => (
            <tr key={number}>
              {row.map((cell, index) => (
                <td key={index}>{elements(cell.tokens)}</td>
              ))}
            </tr>
          ))}
        </tbody>
      </table>
    </div>
  );
}
