import { useState } from "preact/hooks";
import { percent, shown } from "./format";
import type { Token } from "./generation";
import { useRoving } from "./roving";

/** An answer token by token: the fainter the tint, the surer the model was. One token at a time says what else it could have been. */
export function Probabilities({ tokens }: { tokens: Token[] }) {
  const [chosen, setChosen] = useState(0);
  const { group, item, onKeyDown } = useRoving(tokens.length);
  const token = tokens[Math.min(chosen, tokens.length - 1)];
  return (
    <div>
      <div class="tokens" role="group" aria-label="Tokens" ref={group} onKeyDown={onKeyDown}>
        {tokens.map((each, index) => {
          const { tabIndex, onFocus } = item(index);
          return (
            <button
              key={index}
              type="button"
              class={index === chosen ? "token chosen" : "token"}
              style={{ "--weight": 1 - each.probability }}
              aria-label={`${shown(each.text)}, ${percent(each.probability)}`}
              tabIndex={tabIndex}
              onFocus={() => {
                onFocus();
                setChosen(index);
              }}
              onMouseEnter={() => setChosen(index)}
            >
              {each.text}
            </button>
          );
        })}
      </div>
      {token && (
        <dl class="others" aria-label="What it could have been">
          <Bar text={token.text} probability={token.probability} isChosen />
          {token.others.map((other) => (
            <Bar key={other.text} {...other} />
          ))}
        </dl>
      )}
    </div>
  );
}

function Bar({ text, probability, isChosen = false }: { text: string; probability: number; isChosen?: boolean }) {
  return (
    <div class={isChosen ? "bar chosen" : "bar"} style={{ "--weight": probability }}>
      <dt>{shown(text)}</dt>
      <dd>{percent(probability)}</dd>
    </div>
  );
}
