// Renders a Modelfile's TEMPLATE on chats as Ollama does: text/template over System, Messages (consecutive ones of one
// role joined), Think and IsThinkSet, with missing keys as zero. Where the template has think tags Ollama switches
// thinking on unless it was asked for or refused. Reads {"Template", "Chats": [{"Messages", "Think"}]}, writes texts,
// and the think tags as Ollama infers them: the first and last text of the list around {{ .Thinking }}.
package main

import (
	"encoding/json"
	"os"
	"strings"
	"text/template"
	"text/template/parse"
)

type message struct{ Role, Content, Thinking string }

type chat struct {
	Messages []message
	Think    *bool
}

func tags(node parse.Node, list *parse.ListNode) []string {
	switch n := node.(type) {
	case *parse.ListNode:
		for _, inner := range n.Nodes {
			if found := tags(inner, n); found != nil {
				return found
			}
		}
	case *parse.RangeNode:
		return tags(n.List, nil)
	case *parse.IfNode:
		if found := tags(n.List, nil); found != nil {
			return found
		}
		if n.ElseList != nil {
			return tags(n.ElseList, nil)
		}
	case *parse.ActionNode:
		if n.String() == "{{.Thinking}}" {
			first, last := list.Nodes[0], list.Nodes[len(list.Nodes)-1]
			return []string{strings.TrimSpace(first.String()), strings.TrimSpace(last.String())}
		}
	}
	return nil
}

func collate(messages []message) (string, []*message) {
	system, joined := []string{}, []*message{}
	for _, one := range messages {
		if one.Role == "system" {
			system = append(system, one.Content)
		}
		if n := len(joined); n > 0 && joined[n-1].Role == one.Role {
			joined[n-1].Content += "\n\n" + one.Content
		} else {
			next := one
			joined = append(joined, &next)
		}
	}
	return strings.Join(system, "\n\n"), joined
}

func main() {
	var input struct {
		Template string
		Chats    []chat
	}
	if err := json.NewDecoder(os.Stdin).Decode(&input); err != nil {
		panic(err)
	}
	parsed := template.Must(template.New("").Option("missingkey=zero").Parse(input.Template))
	found := tags(parsed.Tree.Root, nil)
	texts := []string{}
	for _, one := range input.Chats {
		var out strings.Builder
		set, think := one.Think != nil || found != nil, found != nil
		if one.Think != nil {
			think = *one.Think
		}
		system, messages := collate(one.Messages)
		values := map[string]any{"System": system, "Messages": messages, "IsThinkSet": set, "Think": think, "Response": ""}
		if err := parsed.Execute(&out, values); err != nil {
			panic(err)
		}
		texts = append(texts, out.String())
	}
	json.NewEncoder(os.Stdout).Encode(map[string]any{"texts": texts, "tags": found})
}
