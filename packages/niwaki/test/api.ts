import ts from 'typescript';

// What niwaki exports, as its source says it: for the page docs/generated/api.md, and for what the page has to be.

export interface Exported {
  readonly name: string;
  readonly kind: 'value' | 'type';
  /** Without a body or defaults; of a type its name alone. */
  readonly signature: string;
  /** First sentence of the docstring; empty where there is none. */
  readonly sentence: string;
  /** Types of Niwaki that its declaration mentions. */
  readonly mentions: readonly string[];
}

export interface Group {
  readonly title: string;
  readonly exported: readonly Exported[];
}

/** The exports of an index, in its order, under the comment that each group begins with. */
export function readGroups(index: string): readonly Group[] {
  const program = programOf(index);
  const checker = program.getTypeChecker();
  const groups: { title: string; exported: Exported[] }[] = [];
  for (const statement of program.getSourceFile(index)!.statements) {
    const title = commentBefore(statement);
    if (title !== undefined) groups.push({ title, exported: [] });
    const symbols = exportsOf(statement as ts.ExportDeclaration, checker);
    groups.at(-1)!.exported.push(...symbols.map((symbol) => exportedAs(symbol, checker)));
  }
  return groups;
}

function programOf(index: string): ts.Program {
  const config = new URL('../tsconfig.json', import.meta.url).pathname;
  const host = { ...ts.sys, onUnRecoverableConfigFileDiagnostic: () => {} };
  const { options } = ts.getParsedCommandLineOfConfigFile(config, { composite: false, noEmit: true }, host)!;
  return ts.createProgram({ rootNames: [index], options });
}

/** The line comment right in front, without its slashes and its point. */
function commentBefore(statement: ts.Statement): string | undefined {
  const text = statement.getSourceFile().text;
  const last = ts.getLeadingCommentRanges(text, statement.getFullStart())?.at(-1);
  return (
    last &&
    text
      .slice(last.pos, last.end)
      .replace(/^\/\/ /, '')
      .replace(/\.$/, '')
  );
}

function exportsOf({ exportClause, moduleSpecifier }: ts.ExportDeclaration, checker: ts.TypeChecker): readonly ts.Symbol[] {
  if (exportClause === undefined) return checker.getExportsOfModule(checker.getSymbolAtLocation(moduleSpecifier!)!);
  return (exportClause as ts.NamedExports).elements.map(({ name }) => checker.getSymbolAtLocation(name)!);
}

const unaliased = (symbol: ts.Symbol, checker: ts.TypeChecker): ts.Symbol =>
  symbol.flags & ts.SymbolFlags.Alias ? checker.getAliasedSymbol(symbol) : symbol;

function exportedAs(symbol: ts.Symbol, checker: ts.TypeChecker): Exported {
  const own = unaliased(symbol, checker);
  const declaration = own.declarations![0]!;
  return {
    name: symbol.name,
    kind: own.flags & ts.SymbolFlags.Value ? 'value' : 'type',
    signature: signatureOf(symbol.name, declaration, checker),
    sentence: firstSentence(ts.displayPartsToString(own.getDocumentationComment(checker))),
    mentions: mentionedBy(declaration, checker),
  };
}

/** "et al. 2024" and "e.g. a" end no sentence: what follows an end is neither small nor a digit. */
const firstSentence = (text: string): string => /^[^]*?[.!?](?=\s+[^\sa-z\d]|\s*$)/.exec(text)?.[0].replaceAll(/\s+/g, ' ') ?? text;

const textOf = (node: ts.Node): string =>
  node
    .getText()
    .replaceAll(/\/\*\*[^]*?\*\/|\/\/.*/g, '')
    .replaceAll(/\s+/g, ' ');

function signatureOf(name: string, declaration: ts.Declaration, checker: ts.TypeChecker): string {
  const call = callOf(declaration);
  if (call !== undefined) return `${name}(${call.parameters.map((one) => parameterText(one, checker)).join(', ')}): ${textOf(call.type!)}`;
  if (ts.isClassDeclaration(declaration)) return ['class', name, ...(declaration.heritageClauses ?? []).map(textOf)].join(' ');
  if (ts.isVariableDeclaration(declaration)) return `const ${name}: ${textOf(declaration.type!)}`;
  return name;
}

function parameterText(parameter: ts.ParameterDeclaration, checker: ts.TypeChecker): string {
  const { name, type, initializer, questionToken, dotDotDotToken } = parameter;
  const typeText = type === undefined ? checker.typeToString(checker.getTypeAtLocation(parameter)) : textOf(type);
  // What is taken apart is options, or has no name but those of its fields.
  const nameText = ts.isObjectBindingPattern(name) && /Options\b|^\{/.test(typeText) ? 'options' : textOf(name);
  return `${dotDotDotToken ? '...' : ''}${nameText}${initializer || questionToken ? '?' : ''}: ${typeText}`;
}

/** A function by its declaration, or a constant that is one. */
function callOf(declaration: ts.Declaration): ts.SignatureDeclaration | undefined {
  if (ts.isFunctionDeclaration(declaration)) return declaration;
  const value = ts.isVariableDeclaration(declaration) ? declaration.initializer : undefined;
  return value !== undefined && ts.isArrowFunction(value) ? value : undefined;
}

/** Named types that stand in a declaration, bodies and what is private left out. */
function mentionedBy(declaration: ts.Declaration, checker: ts.TypeChecker): readonly string[] {
  const found = new Set<string>();
  const visit = (node: ts.Node | undefined): void => {
    if (node === undefined || ts.isBlock(node) || isPrivate(node)) return;
    if (ts.isTypeReferenceNode(node) || ts.isExpressionWithTypeArguments(node)) {
      const symbol = checker.getSymbolAtLocation(ts.isTypeReferenceNode(node) ? node.typeName : node.expression);
      if (symbol !== undefined && isOurs(unaliased(symbol, checker))) found.add(unaliased(symbol, checker).name);
    }
    ts.forEachChild(node, visit);
  };
  const call = callOf(declaration);
  if (call === undefined) ts.forEachChild(declaration, visit);
  else for (const node of [...(call.typeParameters ?? []), ...call.parameters.map(({ type }) => type), call.type]) visit(node);
  return [...found];
}

const isPrivate = (node: ts.Node): boolean =>
  ts.isPropertyDeclaration(node) && (ts.getCombinedModifierFlags(node) & ts.ModifierFlags.Private) !== 0;

/** Not a parameter of a generic, and not of tfjs or the platform. */
const isOurs = ({ flags, declarations }: ts.Symbol): boolean =>
  (flags & ts.SymbolFlags.TypeParameter) === 0 && /\/packages\/\w+\/src\//.test(declarations?.[0]?.getSourceFile().fileName ?? '');
